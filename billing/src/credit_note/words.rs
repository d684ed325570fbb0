//! Words of credit notes (credit-notes.md 3).

domain::wire_enum! {
    /// Where a credit note is in its life.
    pub enum CreditNoteStatus {
        /// Lines may be added, no number.
        Draft = "draft",
        /// Locked, numbered, all of it left.
        Issued = "issued",
        /// Some of it used.
        PartiallyApplied = "partially_applied",
        /// All of it used.
        Applied = "applied",
        /// Cancelled.
        Void = "void",
    }
}

domain::wire_enum! {
    /// What it is for.
    pub enum CreditNoteReasonCode {
        /// A refund that the customer asked for.
        Refund = "REFUND",
        /// An invoice that was issued in error.
        Void = "VOID",
        /// Wrong price, quantity or tax.
        BillingError = "BILLING_ERROR",
        /// Paid more than owed.
        Overpayment = "OVERPAYMENT",
        /// A subscription that ended in mid-period.
        Cancellation = "CANCELLATION",
        /// A downgrade in mid-period.
        Downgrade = "DOWNGRADE",
        /// Goodwill.
        Goodwill = "GOODWILL",
        /// A service that was not as promised.
        ServiceCredit = "SERVICE_CREDIT",
        /// Anything else.
        Other = "OTHER",
    }
}
