//! What wallets pay of an invoice that is being finalized: what captures took before, and what is drawn now (rules D2, D4).

use std::collections::BTreeMap;

use domain::{Currency, Money, Result, WalletId};
use ledger::Settlement;

/// The payments of one invoice, in its currency, one per wallet.
#[derive(Clone, Debug)]
pub(crate) struct Paid {
    /// What of it captures have paid.
    pub(crate) settled: Settlement,
    wallets: BTreeMap<WalletId, Money>,
}

impl Paid {
    /// Nothing yet.
    pub(crate) fn nothing(currency: Currency) -> Self {
        Self { settled: Settlement::none(currency), wallets: BTreeMap::new() }
    }

    /// Adds a part that captures have paid with what they took from a wallet, in the wallet's currency.
    pub(crate) fn settle(&mut self, wallet: WalletId, part: Money, taken: Money) -> Result<()> {
        self.settled.add(part, taken)?;
        self.draw(wallet, part)
    }

    /// Adds what is drawn from a wallet.
    pub(crate) fn draw(&mut self, wallet: WalletId, amount: Money) -> Result<()> {
        let sum = self.wallets.entry(wallet).or_insert_with(|| Money::zero(amount.currency()));
        *sum = sum.add(amount)?;
        Ok(())
    }

    /// All of it.
    pub(crate) fn total(&self) -> Result<Money> {
        let zero = Money::zero(self.settled.amount.currency());
        Ok(self.wallets.values().try_fold(zero, |sum, part| sum.add(*part))?)
    }

    /// What each wallet pays; none pays nothing.
    pub(crate) fn by_wallet(&self) -> impl Iterator<Item = (WalletId, Money)> {
        self.wallets.iter().map(|(wallet, amount)| (*wallet, *amount)).filter(|(_, amount)| !amount.is_zero())
    }
}
