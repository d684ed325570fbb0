//! Words of subscriptions (subscriptions.md, Enums).

domain::wire_enum! {
    /// Where an agreement is in its life (subscriptions.md 3.1).
    pub enum SubscriptionStatus {
        /// Starts in the future; nothing is charged.
        Pending = "PENDING",
        /// Free trial.
        Trialing = "TRIALING",
        /// Normal billing.
        Active = "ACTIVE",
        /// No invoices.
        Paused = "PAUSED",
        /// A payment failed.
        Dunning = "DUNNING",
        /// Closed before its term had ended.
        Cancelled = "CANCELLED",
        /// Closed after its term had ended.
        Expired = "EXPIRED",
    }
}

impl SubscriptionStatus {
    /// Statuses that an action can reach from this one, in the order of the reference. A subscription past its term end
    /// lists EXPIRED in place of CANCELLED.
    #[must_use]
    pub fn transitions(self, is_past_term: bool) -> Vec<Self> {
        let mut to = match self {
            Self::Pending => vec![Self::Trialing, Self::Active, Self::Cancelled],
            Self::Trialing | Self::Paused => vec![Self::Active, Self::Cancelled],
            Self::Active => vec![Self::Paused, Self::Dunning, Self::Cancelled],
            Self::Dunning => vec![Self::Active, Self::Cancelled],
            Self::Cancelled | Self::Expired => Vec::new(),
        };
        if is_past_term {
            to.iter_mut().filter(|status| **status == Self::Cancelled).for_each(|status| *status = Self::Expired);
        }
        to
    }

    /// Whether nothing can change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Cancelled | Self::Expired)
    }
}

domain::wire_enum! {
    /// How far dunning has come.
    pub enum DunningStage {
        /// Told.
        Warned = "WARNED",
        /// In grace.
        Graced = "GRACED",
        /// Access revoked.
        Suspended = "SUSPENDED",
    }
}

domain::wire_enum! {
    /// Why a subscription was closed.
    pub enum CancellationReason {
        /// The customer asked.
        CustomerRequest = "CUSTOMER_REQUEST",
        /// Payments failed.
        NonPayment = "NON_PAYMENT",
        /// Fraud.
        Fraud = "FRAUD",
        /// Moved elsewhere.
        Migration = "MIGRATION",
        /// Its term had ended.
        TermEnded = "TERM_ENDED",
        /// Created twice.
        Duplicate = "DUPLICATE",
        /// Anything else.
        Other = "OTHER",
    }
}

domain::wire_enum! {
    /// Whether a subscription stays on its plan version.
    pub enum VersionTrackMode {
        /// Until it is moved.
        Pinned = "PINNED",
        /// Moves to the head version at each period start.
        Latest = "LATEST",
    }
}

domain::wire_enum! {
    /// Whether a change in mid-period is prorated (proration.md).
    pub enum ProrationType {
        /// By seconds.
        Prorate = "PRORATE",
        /// Not at all.
        None = "NONE",
    }
}

domain::wire_enum! {
    /// Where a billing period lies.
    pub enum BillingPeriodStatus {
        /// Over.
        Past = "past",
        /// Running.
        Current = "current",
        /// To come.
        Next = "next",
    }
}
