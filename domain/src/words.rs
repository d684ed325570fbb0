//! Words of the contract that more than one room uses. Words of one room stand in that room.

wire_enum! {
    /// What becomes of the digits that a currency has no place for (currencies.md 4).
    pub enum RoundingMode {
        /// To the nearest amount, a half away from zero.
        HalfUp = "HALF_UP",
        /// To the nearest amount, a half to the even one.
        HalfEven = "HALF_EVEN",
        /// Away from zero.
        Up = "UP",
        /// Towards zero.
        Down = "DOWN",
    }
}

wire_enum! {
    /// How events of a meter combine (meters.md 5).
    pub enum MeterFunction {
        /// Number of events.
        Count = "COUNT",
        /// Sum of values.
        Sum = "SUM",
        /// Largest value.
        Max = "MAX",
        /// Smallest value.
        Min = "MIN",
        /// Mean value.
        Avg = "AVG",
        /// Value of the latest event.
        Last = "LAST",
        /// Number of distinct values.
        UniqueCount = "UNIQUE_COUNT",
        /// Value times hours held.
        TimeWeighted = "TIME_WEIGHTED",
        /// Combination of other meters.
        Formula = "FORMULA",
    }
}

wire_enum! {
    /// What happens to an event of a sealed window (usage.md 5).
    pub enum LateEventPolicy {
        /// Counted in the open window.
        NextPeriod = "NEXT_PERIOD",
        /// Refused.
        Reject = "REJECT",
        /// Accepted and not counted.
        Drop = "DROP",
        /// Difference billed as an adjustment.
        Correct = "CORRECT",
    }
}

wire_enum! {
    /// How the tiers of a price are walked (pricing-models.md).
    pub enum PricingModel {
        /// One tier's rate for all units.
        Volume = "VOLUME",
        /// Each tier takes its share.
        Staircase = "STAIRCASE",
        /// Whole packages.
        Package = "PACKAGE",
    }
}

wire_enum! {
    /// Type of a variable of a price formula.
    pub enum FormulaVarType {
        /// Exact decimal.
        Number = "NUMBER",
        /// Text.
        String = "STRING",
        /// true or false.
        Boolean = "BOOLEAN",
    }
}

wire_enum! {
    /// How a rate table is read.
    pub enum RateTableType {
        /// By exact key.
        Lookup = "lookup",
        /// By numeric range.
        Bracket = "bracket",
    }
}

wire_enum! {
    /// What a rate table answers for a key that it lacks.
    pub enum MissingKeyPolicy {
        /// The computation fails.
        Error = "error",
        /// 0.
        Zero = "zero",
        /// The table's default value.
        DefaultValue = "default_value",
    }
}

wire_enum! {
    /// Where a product's quantity comes from (products.md).
    pub enum ProductType {
        /// Always 1.
        FixedCharge = "FIXED_CHARGE",
        /// The subscription item's quantity.
        Seat = "SEAT",
        /// The usage events of the period.
        Usage = "USAGE",
    }
}

wire_enum! {
    /// What happens to an event whose price key has no price (products.md 5).
    pub enum UnmatchedPriceKeyPolicy {
        /// Refused.
        Reject = "reject",
        /// Routed to the default key.
        UseDefault = "use_default",
        /// Accepted and not counted.
        Drop = "drop",
    }
}

wire_enum! {
    /// The part that a meter plays for a product (meter-bindings.md 5).
    pub enum BindingRole {
        /// Its quantity is billed.
        Primary = "PRIMARY",
        /// A variable of the price formula.
        FormulaInput = "FORMULA_INPUT",
        /// Shown and thresholded, never billed.
        Informational = "INFORMATIONAL",
    }
}

wire_enum! {
    /// Whether consumption beyond the allowance is charged or refused.
    pub enum OveragePolicy {
        /// Charged.
        Charge = "CHARGE",
        /// Refused.
        Block = "BLOCK",
    }
}

wire_enum! {
    /// What a usage cap does when it is reached.
    pub enum UsageCapAction {
        /// Refuses further usage of the period.
        Block = "BLOCK",
        /// Sends a mail.
        Notify = "NOTIFY",
    }
}

wire_enum! {
    /// Why further usage is refused: the code of the refusal.
    pub enum BlockCode {
        /// A threshold with BLOCK, or a usage cap.
        UsageCapReached = "USAGE_CAP_REACHED",
        /// The allowance is used up, and the plan sells nothing beyond it.
        AllowanceExhausted = "ALLOWANCE_EXHAUSTED",
    }
}

wire_enum! {
    /// Where the included quantity of a product comes from.
    pub enum IncludedQuantitySource {
        /// The plan version.
        Plan = "PLAN",
        /// The item of the subscription.
        SubscriptionItem = "SUBSCRIPTION_ITEM",
        /// The active phase.
        Phase = "PHASE",
        /// An add-on.
        AddOn = "ADD_ON",
        /// A promotion.
        Promotion = "PROMOTION",
        /// There is no allowance.
        None = "NONE",
    }
}

wire_enum! {
    /// How long a commitment period is.
    pub enum CommitmentPeriod {
        /// A month.
        Month = "month",
        /// Three months.
        Quarter = "quarter",
        /// Twelve months.
        Year = "year",
    }
}

impl CommitmentPeriod {
    /// Its length.
    #[must_use]
    pub fn months(self) -> u32 {
        match self {
            Self::Month => 1,
            Self::Quarter => 3,
            Self::Year => 12,
        }
    }
}

wire_enum! {
    /// When what falls short of a commitment is billed.
    pub enum ShortfallPolicy {
        /// At the end of each commitment period.
        BillPeriod = "BILL_PERIOD",
        /// At the end of the term.
        BillTermEnd = "BILL_TERM_END",
    }
}

wire_enum! {
    /// Where a committed use plan is in its life; it follows from its dates.
    pub enum CommittedUsePlanStatus {
        /// Not begun.
        Draft = "DRAFT",
        /// In its term.
        Active = "ACTIVE",
        /// The term is over.
        Completed = "COMPLETED",
        /// Ended before its term.
        Cancelled = "CANCELLED",
    }
}

wire_enum! {
    /// Who shares an allowance.
    pub enum PoolScope {
        /// The whole subscription.
        Subscription = "SUBSCRIPTION",
        /// Each item has its own.
        Item = "ITEM",
    }
}

wire_enum! {
    /// How an observed value is compared with a threshold.
    pub enum ThresholdComparator {
        /// Greater.
        Gt = "GT",
        /// Greater or equal.
        Gte = "GTE",
        /// Less.
        Lt = "LT",
        /// Less or equal.
        Lte = "LTE",
        /// Equal.
        Eq = "EQ",
    }
}

wire_enum! {
    /// What a threshold's value is measured in.
    pub enum ThresholdBasis {
        /// Units of the meter.
        Absolute = "ABSOLUTE",
        /// Percent of the allowance.
        AllowancePercent = "ALLOWANCE_PERCENT",
    }
}

wire_enum! {
    /// What a crossed threshold does.
    pub enum ThresholdActionKind {
        /// Emits an event.
        Webhook = "WEBHOOK",
        /// Sends a mail.
        Notify = "NOTIFY",
        /// Refuses further usage of the window.
        Block = "BLOCK",
        /// Closes the usage so far into an interim invoice.
        Invoice = "INVOICE",
    }
}

wire_enum! {
    /// Shape of a metering window.
    pub enum WindowKind {
        /// The subscription's billing period.
        BillingPeriod = "BILLING_PERIOD",
        /// Calendar units in a time zone.
        Calendar = "CALENDAR",
        /// Fixed size, back to back.
        Tumbling = "TUMBLING",
        /// The last `size` before each event; thresholds only.
        Sliding = "SLIDING",
        /// From the first event for ever.
        Lifetime = "LIFETIME",
    }
}

wire_enum! {
    /// Unit of a calendar window.
    pub enum WindowUnit {
        /// Hour.
        Hour = "HOUR",
        /// Day.
        Day = "DAY",
        /// Week.
        Week = "WEEK",
        /// Month.
        Month = "MONTH",
    }
}

wire_enum! {
    /// Operator of a filter leaf.
    pub enum FilterOperator {
        /// Equal.
        Eq = "EQ",
        /// Not equal, or missing.
        Ne = "NE",
        /// One of.
        In = "IN",
        /// None of, or missing.
        NotIn = "NOT_IN",
        /// Greater.
        Gt = "GT",
        /// Greater or equal.
        Gte = "GTE",
        /// Less.
        Lt = "LT",
        /// Less or equal.
        Lte = "LTE",
        /// Substring.
        Contains = "CONTAINS",
        /// Prefix.
        StartsWith = "STARTS_WITH",
        /// Present.
        Exists = "EXISTS",
        /// Absent.
        NotExists = "NOT_EXISTS",
    }
}

wire_enum! {
    /// Operator of a filter group.
    pub enum FilterGroupOp {
        /// All children.
        And = "AND",
        /// Any child.
        Or = "OR",
        /// No child.
        Not = "NOT",
    }
}

wire_enum! {
    /// Length of a billing interval's unit (subscriptions.md).
    pub enum BillingIntervalUnit {
        /// Days; no anchor.
        Daily = "daily",
        /// Weeks; no anchor.
        Weekly = "weekly",
        /// Months on an anchor day.
        Monthly = "monthly",
        /// Years on an anchor day.
        Yearly = "yearly",
        /// One period.
        OneTime = "one_time",
    }
}

wire_enum! {
    /// Whether recurring charges are billed at the start or the end of their period.
    pub enum BillingTiming {
        /// Start.
        InAdvance = "IN_ADVANCE",
        /// End.
        InArrears = "IN_ARREARS",
    }
}

wire_enum! {
    /// What a charge is for.
    pub enum ChargeKind {
        /// Every period.
        Recurring = "RECURRING",
        /// From usage events.
        Usage = "USAGE",
        /// Once.
        OneTime = "ONE_TIME",
    }
}

wire_enum! {
    /// Whether a customer pays before or after (wallets.md, Mode).
    pub enum WalletMode {
        /// Before.
        Prepaid = "PREPAID",
        /// After.
        Postpaid = "POSTPAID",
    }
}

wire_enum! {
    /// State of a version of a catalog entity (scheduled-changes.md).
    pub enum VersionStatus {
        /// Being edited.
        Draft = "draft",
        /// Takes effect in the future.
        Scheduled = "scheduled",
        /// In effect.
        Active = "active",
        /// Replaced or withdrawn.
        Archived = "archived",
    }
}

wire_enum! {
    /// Tax discriminator of a product (tax-rules.md).
    pub enum SupplyType {
        /// Goods.
        Goods = "GOODS",
        /// Services.
        Services = "SERVICES",
        /// Digital services.
        Digital = "DIGITAL",
    }
}

wire_enum! {
    /// Tax category of a product.
    pub enum ProductTaxCategory {
        /// Standard rate.
        Default = "DEFAULT",
        /// Reduced rate.
        Reduced = "REDUCED",
        /// Zero rate.
        Zero = "ZERO",
        /// Exempt.
        Exempt = "EXEMPT",
    }
}

wire_enum! {
    /// EN 16931 tax category code.
    pub enum TaxCategoryCode {
        /// Standard rate.
        S = "S",
        /// Zero rated.
        Z = "Z",
        /// Exempt.
        E = "E",
        /// Reverse charge.
        Ae = "AE",
        /// Intra-community supply.
        K = "K",
        /// Export.
        G = "G",
        /// Outside the scope of tax.
        O = "O",
        /// Canary Islands.
        L = "L",
        /// Ceuta and Melilla.
        M = "M",
    }
}

wire_enum! {
    /// Kind of tax.
    pub enum TaxType {
        /// Value added tax.
        Vat = "vat",
        /// Sales tax.
        SalesTax = "sales_tax",
        /// Goods and services tax.
        Gst = "gst",
        /// Harmonized sales tax.
        Hst = "hst",
        /// Provincial sales tax.
        Pst = "pst",
    }
}

wire_enum! {
    /// Payment provider.
    pub enum ProviderID {
        /// Stripe.
        Stripe = "stripe",
        /// GoCardless.
        Gocardless = "gocardless",
        /// Mollie.
        Mollie = "mollie",
        /// Adyen.
        Adyen = "adyen",
        /// Outside Kontorion.
        External = "external",
    }
}
