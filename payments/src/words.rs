//! Words of payments, and which moves between states are legal.

use domain::{Error, Result, TransactionId, WorkspaceMode, wire_enum};

wire_enum! {
    /// Which way the money goes.
    pub enum TransactionDirection {
        /// From the customer to the organization.
        Inbound = "INBOUND",
        /// From the organization to the customer or a seller.
        Outbound = "OUTBOUND",
    }
}

wire_enum! {
    /// What a movement of money is.
    pub enum TransactionKind {
        /// Payment of an invoice through a gateway.
        Charge = "CHARGE",
        /// Money of an earlier payment that is given back.
        Refund = "REFUND",
        /// Money that arrived outside the gateways.
        ManualPayment = "MANUAL_PAYMENT",
        /// Money for a wallet.
        WalletTopup = "WALLET_TOPUP",
        /// Payment from a wallet.
        WalletPayment = "WALLET_PAYMENT",
        /// Payment to a seller.
        Payout = "PAYOUT",
        /// Payment that the bank took back.
        Chargeback = "CHARGEBACK",
    }
}

impl TransactionKind {
    /// The way its money goes.
    #[must_use]
    pub fn direction(self) -> TransactionDirection {
        match self {
            Self::Charge | Self::ManualPayment | Self::WalletTopup | Self::WalletPayment => {
                TransactionDirection::Inbound
            }
            Self::Refund | Self::Payout | Self::Chargeback => TransactionDirection::Outbound,
        }
    }
}

wire_enum! {
    /// How far a transaction is.
    pub enum TransactionStatus {
        /// Written down; the gateway may have been asked.
        Pending = "PENDING",
        /// The gateway has taken it and not decided.
        Processing = "PROCESSING",
        /// The money has moved.
        Succeeded = "SUCCEEDED",
        /// The money has not moved.
        Failed = "FAILED",
        /// Withdrawn before the gateway was asked.
        Cancelled = "CANCELLED",
        /// Part of it was given back.
        PartiallyRefunded = "PARTIALLY_REFUNDED",
        /// All of it was given back.
        Refunded = "REFUNDED",
        /// The customer's bank contests it.
        Disputed = "DISPUTED",
    }
}

impl TransactionStatus {
    /// Where it may go from here (transactions.md 3). Another partial refund stays where it is.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Processing, Self::Cancelled],
            Self::Processing => &[Self::Succeeded, Self::Failed],
            Self::Succeeded => &[Self::PartiallyRefunded, Self::Refunded, Self::Disputed],
            Self::PartiallyRefunded => &[Self::PartiallyRefunded, Self::Refunded],
            Self::Failed | Self::Cancelled | Self::Refunded | Self::Disputed => &[],
        }
    }

    /// The next state.
    ///
    /// # Errors
    /// `INVALID_TRANSITION`.
    pub fn go(self, id: TransactionId, to: Self) -> Result<Self> {
        if self.next().contains(&to) {
            return Ok(to);
        }
        let allowed: Vec<_> = self.next().iter().map(|status| status.as_str()).collect();
        Err(Error::invalid_transition("transaction", id, self.as_str(), to.as_str(), &allowed))
    }

    /// Whether nobody knows yet how it ends.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Processing)
    }
}

wire_enum! {
    /// How money came that no gateway took (manual-payments.md).
    pub enum ManualPaymentSource {
        /// Bank transfer.
        BankTransfer = "BANK_TRANSFER",
        /// Cash.
        Cash = "CASH",
        /// Cheque.
        Check = "CHECK",
        /// Card terminal.
        CardTerminal = "CARD_TERMINAL",
        /// A processor that Kontorion does not talk to.
        ExternalProcessor = "EXTERNAL_PROCESSOR",
        /// Anything else.
        Other = "OTHER",
    }
}

wire_enum! {
    /// Which world the credentials of a gateway belong to.
    pub enum GatewayMode {
        /// No money moves.
        Test = "test",
        /// Real money.
        Live = "live",
    }
}

impl GatewayMode {
    /// The mode of gateways that a workspace uses.
    #[must_use]
    pub fn of(workspace: WorkspaceMode) -> Self {
        match workspace {
            WorkspaceMode::Sandbox => Self::Test,
            WorkspaceMode::Live => Self::Live,
        }
    }
}

wire_enum! {
    /// Kind of instrument.
    pub enum PaymentMethodType {
        /// Card.
        CreditCard = "CREDIT_CARD",
        /// Bank account.
        BankAccount = "BANK_ACCOUNT",
        /// SEPA mandate.
        SepaDirectDebit = "SEPA_DIRECT_DEBIT",
        /// PayPal.
        Paypal = "PAYPAL",
        /// A processor that Kontorion does not talk to.
        External = "EXTERNAL",
    }
}

wire_enum! {
    /// Whether an instrument can be charged.
    pub enum PaymentMethodStatus {
        /// It can.
        Active = "ACTIVE",
        /// Its mandate is not confirmed.
        Pending = "PENDING",
        /// Its time is over.
        Expired = "EXPIRED",
        /// Its provider refuses it for good.
        Failed = "FAILED",
        /// Taken away; the row stays.
        Removed = "REMOVED",
    }
}

wire_enum! {
    /// How simulated payments end.
    pub enum PaymentOutcome {
        /// The money moves.
        Success = "success",
        /// Refused without a reason.
        Decline = "decline",
        /// Not enough money.
        InsufficientFunds = "insufficient_funds",
        /// The card is past its date.
        ExpiredCard = "expired_card",
        /// The bank suspects fraud.
        Fraud = "fraud",
        /// Something went wrong on the way to the bank.
        ProcessingError = "processing_error",
        /// The gateway cannot be reached.
        NetworkError = "network_error",
    }
}

wire_enum! {
    /// Why a payment failed: one vocabulary for all providers, that of the simulations and what only real providers say.
    pub enum FailureCode {
        /// Refused without a reason, or for one that stays.
        Decline = "decline",
        /// Not enough money.
        InsufficientFunds = "insufficient_funds",
        /// The card is past its date.
        ExpiredCard = "expired_card",
        /// Lost, stolen, or suspected of fraud.
        Fraud = "fraud",
        /// Something went wrong on the way to the bank.
        ProcessingError = "processing_error",
        /// The gateway cannot be reached.
        NetworkError = "network_error",
        /// The bank wants to hear from the customer.
        AuthenticationRequired = "authentication_required",
        /// The gateway refuses the request itself: credentials, amount, currency or token.
        InvalidRequest = "invalid_request",
    }
}

impl FailureCode {
    /// Whether the same method may succeed later (test-payment-simulations.md 4).
    #[must_use]
    pub fn is_soft(self) -> bool {
        match self {
            Self::InsufficientFunds | Self::ProcessingError | Self::NetworkError => true,
            Self::Decline | Self::ExpiredCard | Self::Fraud | Self::AuthenticationRequired | Self::InvalidRequest => {
                false
            }
        }
    }
}

impl PaymentOutcome {
    /// Why the payment fails; nothing when it does not.
    #[must_use]
    pub fn failure(self) -> Option<FailureCode> {
        match self {
            Self::Success => None,
            Self::Decline => Some(FailureCode::Decline),
            Self::InsufficientFunds => Some(FailureCode::InsufficientFunds),
            Self::ExpiredCard => Some(FailureCode::ExpiredCard),
            Self::Fraud => Some(FailureCode::Fraud),
            Self::ProcessingError => Some(FailureCode::ProcessingError),
            Self::NetworkError => Some(FailureCode::NetworkError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::wire::Word;

    #[test]
    fn only_the_moves_of_the_reference_are_legal() {
        use TransactionStatus as S;
        let legal = [
            (S::Pending, S::Processing),
            (S::Pending, S::Cancelled),
            (S::Processing, S::Succeeded),
            (S::Processing, S::Failed),
            (S::Succeeded, S::PartiallyRefunded),
            (S::Succeeded, S::Refunded),
            (S::Succeeded, S::Disputed),
            (S::PartiallyRefunded, S::PartiallyRefunded),
            (S::PartiallyRefunded, S::Refunded),
        ];
        let id = TransactionId::generate();
        for from in S::ALL {
            for to in S::ALL {
                assert_eq!(from.go(id, *to).is_ok(), legal.contains(&(*from, *to)), "{from} → {to}");
            }
        }
    }

    #[test]
    fn every_simulated_failure_keeps_its_name() {
        for outcome in PaymentOutcome::ALL {
            let code = outcome.failure().map(FailureCode::as_str);
            assert_eq!(code, (*outcome != PaymentOutcome::Success).then_some(outcome.as_str()));
        }
        let soft: Vec<_> = FailureCode::ALL.iter().filter(|code| code.is_soft()).map(|code| code.as_str()).collect();
        assert_eq!(soft, ["insufficient_funds", "processing_error", "network_error"]);
    }
}
