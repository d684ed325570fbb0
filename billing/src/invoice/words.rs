//! Words of invoices (invoices.md 3).

domain::wire_enum! {
    /// Where an invoice is in its life.
    pub enum InvoiceStatus {
        /// Recomputed on every change.
        Draft = "draft",
        /// Waits for an approval.
        PendingApproval = "pending_approval",
        /// Immutable, numbered, billable.
        Finalized = "finalized",
        /// Past its due date without full payment.
        Overdue = "overdue",
        /// Fully paid.
        Paid = "paid",
        /// Cancelled or written off.
        Void = "void",
        /// Payment retries are exhausted.
        Error = "error",
    }
}

impl InvoiceStatus {
    /// Statuses that this one can become (invoices.md 4).
    #[must_use]
    pub fn transitions(self) -> &'static [Self] {
        match self {
            Self::Draft => &[Self::PendingApproval, Self::Finalized],
            Self::PendingApproval => &[Self::Draft, Self::Finalized, Self::Void],
            Self::Finalized => &[Self::Paid, Self::Overdue, Self::Void, Self::Error],
            Self::Overdue => &[Self::Paid, Self::Void, Self::Error],
            Self::Error => &[Self::Paid, Self::Void],
            Self::Paid | Self::Void => &[],
        }
    }
}

domain::wire_enum! {
    /// Kind of document.
    pub enum InvoiceType {
        /// Of a subscription.
        Subscription = "subscription",
        /// Manual.
        OneOff = "one_off",
        /// Only where documents are listed together.
        CreditNote = "credit_note",
    }
}

domain::wire_enum! {
    /// What a line charges.
    pub enum InvoiceLineType {
        /// Fee of a period.
        Recurring = "RECURRING",
        /// Metered usage.
        Usage = "USAGE",
        /// Fee that is charged once.
        OneTime = "ONE_TIME",
        /// Change in mid-period.
        Proration = "PRORATION",
        /// Add-on.
        AddOn = "ADD_ON",
        /// Milestone.
        Milestone = "MILESTONE",
        /// Reduction.
        Discount = "DISCOUNT",
        /// Correction.
        Adjustment = "ADJUSTMENT",
        /// Shortfall of a commitment.
        CommitTrueUp = "COMMIT_TRUE_UP",
        /// By hand.
        Manual = "MANUAL",
    }
}

domain::wire_enum! {
    /// At which moment a charge falls due.
    pub enum AppliesAt {
        /// Start of its period.
        PeriodStart = "PERIOD_START",
        /// End of its period.
        PeriodEnd = "PERIOD_END",
        /// First activation.
        Activation = "ACTIVATION",
        /// Closing.
        Cancellation = "CANCELLATION",
    }
}
