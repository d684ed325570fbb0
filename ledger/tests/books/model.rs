//! Random operations on the real books beside a model of a few lines. After each step both agree on the outcome and on
//! every balance; at the end of each case the whole of the books is verified. A failure prints its seed and shrinks.

use chrono::{TimeDelta, TimeZone, Utc};
use domain::{Clock, Currency, HoldId, InvoiceId, Money, WalletId, WalletMode};
use ledger::wallet::{AdjustRequest, CaptureHoldRequest, WalletBalanceKind, WalletDefaults, WalletRequest};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::fixture::Books;

#[derive(Clone, Debug)]
enum Step {
    Credit { cents: i64, promotional: bool, hours: Option<i64> },
    Debit { cents: i64 },
    Hold { cents: i64, hours: i64 },
    Capture { which: usize, cents: i64 },
    Release { which: usize },
    Charge { cents: i64 },
    Adjust { cents: i64, kind: WalletBalanceKind },
    Wait { hours: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let cents = 1..20_000_i64;
    prop_oneof![
        4 => (cents.clone(), any::<bool>(), proptest::option::of(1..20_i64))
            .prop_map(|(cents, promotional, hours)| Step::Credit { cents, promotional, hours: hours.filter(|_| promotional) }),
        4 => cents.clone().prop_map(|cents| Step::Debit { cents }),
        3 => (cents.clone(), 1..20_i64).prop_map(|(cents, hours)| Step::Hold { cents, hours }),
        2 => (0..4_usize, cents.clone()).prop_map(|(which, cents)| Step::Capture { which, cents }),
        1 => (0..4_usize).prop_map(|which| Step::Release { which }),
        2 => cents.clone().prop_map(|cents| Step::Charge { cents }),
        1 => (-20_000..20_000_i64, any::<bool>()).prop_map(|(cents, cash)| Step::Adjust {
            cents: if cents == 0 { 1 } else { cents },
            kind: if cash { WalletBalanceKind::Cash } else { WalletBalanceKind::Promotional },
        }),
        2 => (1..12_i64).prop_map(|hours| Step::Wait { hours }),
    ]
}

/// What a wallet should be, in cents and hours since the start.
#[derive(Clone, Debug, Default)]
struct Model {
    now: i64,
    cash: i64,
    promotional: i64,
    expires: Option<i64>,
    credit: i64,
    holds: Vec<(HoldId, i64, i64)>,
}

impl Model {
    fn lapse(&mut self) {
        let now = self.now;
        self.holds.retain(|(_, _, expires)| *expires > now);
        if self.promotional > 0 && self.expires.is_some_and(|expires| expires <= now) {
            (self.promotional, self.expires) = (0, None);
        }
    }

    fn held(&self) -> i64 {
        self.holds.iter().map(|(_, cents, _)| cents).sum()
    }

    fn available(&self) -> i64 {
        self.cash + self.promotional - self.held() + self.credit
    }

    fn take(&mut self, cents: i64) {
        let promotional = cents.min(self.promotional);
        self.promotional -= promotional;
        self.cash -= cents - promotional;
        self.empty();
    }

    /// Without promotional credit there is nothing that could lapse.
    fn empty(&mut self) {
        if self.promotional == 0 {
            self.expires = None;
        }
    }
}

fn euro(cents: i64) -> Money {
    Money::new(Decimal::new(cents, 2), Currency::EUR).unwrap()
}

fn amount(cents: i64) -> Value {
    serde_json::to_value(euro(cents)).unwrap()
}

struct Case<'a> {
    books: &'a mut Books,
    wallet: WalletId,
    model: Model,
}

fn start() -> domain::Instant {
    Utc.with_ymd_and_hms(2030, 1, 1, 0, 0, 0).unwrap()
}

impl Case<'_> {
    async fn apply(&mut self, step: &Step) {
        self.model.lapse();
        match *step {
            Step::Wait { hours } => {
                self.model.now += hours;
                self.books.scope.clock = Clock::At(start() + TimeDelta::hours(self.model.now));
                self.model.lapse();
            }
            Step::Credit { cents, promotional, hours } => self.credit(cents, promotional, hours).await,
            Step::Debit { cents } => {
                let affordable = cents <= self.model.available();
                let done = self.books.debit(self.wallet, json!({"amount": amount(cents)})).await;
                assert_eq!(done.is_ok(), affordable);
                if affordable {
                    self.model.take(cents);
                }
            }
            Step::Hold { cents, hours } => self.hold(cents, hours).await,
            Step::Capture { which, cents } => self.capture(which, cents).await,
            Step::Release { which } => self.release(which).await,
            Step::Charge { cents } => self.charge(cents).await,
            Step::Adjust { cents, kind } => self.adjust(cents, kind).await,
        }
        self.compare().await;
    }

    async fn credit(&mut self, cents: i64, promotional: bool, hours: Option<i64>) {
        let mut body = json!({"amount": amount(cents), "is_promotional": promotional});
        let expires = hours.map(|hours| self.model.now + hours);
        if let Some(expires) = expires {
            body["expires_at"] = json!(start() + TimeDelta::hours(expires));
        }
        self.books.credit(self.wallet, body).await.unwrap();
        let model = &mut self.model;
        if promotional {
            model.expires =
                if model.promotional == 0 { expires } else { model.expires.zip(expires).map(|(a, b)| a.max(b)) };
            model.promotional += cents;
        } else {
            model.cash += cents;
        }
    }

    async fn hold(&mut self, cents: i64, hours: i64) {
        let expires = self.model.now + hours;
        let body = json!({"amount": amount(cents), "expires_at": start() + TimeDelta::hours(expires)});
        let placed = self.books.hold(self.wallet, body).await;
        assert_eq!(placed.is_ok(), cents <= self.model.available());
        if let Ok(placed) = placed {
            self.model.holds.push((placed.value.id, cents, expires));
        }
    }

    async fn capture(&mut self, which: usize, cents: i64) {
        let Some((id, held, _)) = self.model.holds.get(which).copied() else { return };
        let request = CaptureHoldRequest::read(&json!({"amount": amount(cents)})).unwrap();
        let done = self.books.ask(self.wallet, WalletRequest::CaptureHold(id, request)).await;
        let covered = cents <= held && cents <= self.model.cash + self.model.promotional + self.model.credit;
        assert_eq!(done.is_ok(), covered);
        if covered {
            self.model.holds.remove(which);
            self.model.take(cents);
        }
    }

    async fn release(&mut self, which: usize) {
        let Some((id, ..)) = self.model.holds.get(which).copied() else { return };
        self.books.ask(self.wallet, WalletRequest::ReleaseHold(id)).await.unwrap();
        self.model.holds.remove(which);
    }

    async fn charge(&mut self, cents: i64) {
        let scope = self.books.scope;
        let mut tx = self.books.store.begin("charge").await.unwrap();
        let invoice = InvoiceId::generate();
        let drawn = ledger::charge_for_invoice(&mut tx, &scope, self.wallet, euro(cents), invoice).await.unwrap();
        tx.commit().await.unwrap();
        let expected = cents.min(self.model.available().max(0));
        assert_eq!(drawn, euro(expected));
        self.model.take(expected);
    }

    async fn adjust(&mut self, cents: i64, kind: WalletBalanceKind) {
        let body = json!({"amount": amount(cents), "balance": kind, "reason": "test"});
        let request = AdjustRequest::read(&body).unwrap();
        let done = self.books.ask(self.wallet, WalletRequest::Adjust(request)).await;
        let model = &mut self.model;
        let (balance, floor) = match kind {
            WalletBalanceKind::Cash => (&mut model.cash, -model.credit),
            WalletBalanceKind::Promotional => (&mut model.promotional, 0),
        };
        let allowed = cents > 0 || *balance + cents >= floor;
        assert_eq!(done.is_ok(), allowed);
        if allowed {
            *balance += cents;
            model.empty();
        }
    }

    async fn compare(&self) {
        let dto = self.books.get(self.wallet).await;
        let found =
            [dto.wallet.cash_balance, dto.wallet.promotional_balance, dto.wallet.held_balance, dto.available_balance];
        let model = &self.model;
        let expected = [model.cash, model.promotional, model.held(), model.available()].map(euro);
        assert_eq!(found, expected);
        assert!(model.cash >= -model.credit && model.promotional >= 0, "below the floor: {model:?}");
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut books = runtime.block_on(Books::new());
    let config = Config { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let case = (any::<bool>(), 0..30_000_i64, proptest::collection::vec(step(), 1..40));
    let books = std::cell::RefCell::new(&mut books);
    TestRunner::new(config)
        .run(&case, |(postpaid, credit, steps)| {
            let mut books = books.borrow_mut();
            runtime.block_on(async {
                books.scope.clock = Clock::At(start());
                let mode = if postpaid { WalletMode::Postpaid } else { WalletMode::Prepaid };
                let defaults =
                    WalletDefaults { credit_limit: Some(Decimal::new(credit, 2)), ..WalletDefaults::default() };
                let wallet = books.wallet(mode, Currency::EUR, defaults).await.wallet.id;
                let model = Model { credit: if postpaid { credit } else { 0 }, ..Model::default() };
                let mut case = Case { books: &mut books, wallet, model };
                for step in &steps {
                    case.apply(step).await;
                }
                books.assert_verified().await;
            });
            Ok(())
        })
        .unwrap();
}
