//! Secrets at rest: the credentials of gateways, sealed with ChaCha20-Poly1305 under one key of the operator.
//!
//! A sealed secret is `nonce ‖ ciphertext ‖ tag` and is bound to the row that it stands in, so that it cannot be moved to
//! another. The database knows the fingerprint of the key from the first secret on: whoever comes with another key is told so
//! instead of writing what the others cannot read.

use std::path::Path;
use std::sync::Arc;

use domain::{Error, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use sqlx::PgConnection;
use store::{Store, StoreError};
use uuid::Uuid;

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// A key that cannot be used; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hexadecimal digits.
    #[error("the key of secrets must have 64 hexadecimal digits (32 bytes), as `openssl rand -hex 32` makes them")]
    Form,
    /// The file of the key.
    #[error("the key of secrets in {path}: {source}")]
    File {
        /// Where it should be.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Seals and opens secrets. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    key: Arc<LessSafeKey>,
    fingerprint: [u8; 8],
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("fingerprint", &hex::encode(self.fingerprint)).finish_non_exhaustive()
    }
}

impl Vault {
    fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| KeyError::Form)?;
        let named = [b"kontorion secrets".as_slice(), bytes].concat();
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&digest(&SHA256, &named).as_ref()[..8]);
        Ok(Self { key: Arc::new(LessSafeKey::new(key)), fingerprint })
    }

    /// With the key in hexadecimal digits.
    ///
    /// # Errors
    /// `Form`.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let bytes = hex::decode(text.trim()).ok().filter(|bytes| bytes.len() == KEY_BYTES).ok_or(KeyError::Form)?;
        Self::new(&bytes)
    }

    /// With a key that nobody else has and that is gone with the process: for tests and for printing the OpenAPI document.
    ///
    /// # Errors
    /// `Random`.
    pub fn ephemeral() -> Result<Self, KeyError> {
        Self::new(&random::<KEY_BYTES>()?)
    }

    /// With the key in a file, which is made with a new key when it is not there; only its owner can read it.
    ///
    /// # Errors
    /// `File`, `Form` for what stands in it, `Random`.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.display().to_string(), source };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_hex(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = hex::encode(random::<KEY_BYTES>()?);
                make_private(path, &text).map_err(failed)?;
                // Read again: another process may have been quicker.
                Self::from_hex(&std::fs::read_to_string(path).map_err(failed)?)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Seals a secret of a row.
    ///
    /// # Errors
    /// `Internal` without random numbers.
    pub fn seal(&self, row: impl Into<Uuid>, secret: &[u8]) -> Result<Vec<u8>> {
        let failed = |_| Error::invariant("sealing a secret");
        let nonce = random::<NONCE_LEN>().map_err(|error| Error::internal("sealing a secret", error))?;
        let mut sealed = secret.to_vec();
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound_to(row.into()), &mut sealed)
            .map_err(failed)?;
        Ok([nonce.as_slice(), &sealed, tag.as_ref()].concat())
    }

    /// Opens what [`Vault::seal`] made for this row under this key.
    ///
    /// # Errors
    /// `Internal`: sealed under another key, for another row, or damaged.
    pub fn open(&self, row: impl Into<Uuid>, sealed: &[u8]) -> Result<Vec<u8>> {
        let row = row.into();
        let failed = || {
            let key = hex::encode(self.fingerprint);
            Error::invariant(format!(
                "the secrets of gateway {row} cannot be opened with key {key}: another key, or damage"
            ))
        };
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut bytes = rest.to_vec();
        let opened = self.key.open_in_place(nonce, bound_to(row), &mut bytes).map_err(|_| failed())?;
        Ok(opened.to_vec())
    }

    /// Says before the first work whether this is the key of what the database holds.
    ///
    /// # Errors
    /// As [`Vault::enter`].
    pub async fn check(&self, store: &Store) -> Result<()> {
        let known: Option<Vec<u8>> = sqlx::query_scalar("SELECT fingerprint FROM secret_key")
            .fetch_optional(store.pool())
            .await
            .context("reading the fingerprint of the key of secrets")?;
        known.map_or(Ok(()), |known| self.compare(&known))
    }

    /// Writes the key's fingerprint down with the first secret; every later one must be of the same key.
    ///
    /// # Errors
    /// `Internal` when the database's secrets have another key.
    pub(crate) async fn enter(&self, conn: &mut PgConnection) -> Result<()> {
        let known: Vec<u8> = sqlx::query_scalar(
            "INSERT INTO secret_key (fingerprint) VALUES ($1)
             ON CONFLICT (singleton) DO UPDATE SET fingerprint = secret_key.fingerprint RETURNING fingerprint",
        )
        .bind(self.fingerprint.as_slice())
        .fetch_one(conn)
        .await
        .context("noting the fingerprint of the key of secrets")?;
        self.compare(&known)
    }

    fn compare(&self, known: &[u8]) -> Result<()> {
        if known == self.fingerprint {
            return Ok(());
        }
        let (known, own) = (hex::encode(known), hex::encode(self.fingerprint));
        Err(Error::invariant(format!(
            "the secrets in the database are encrypted with key {known}, this process has key {own}: set secrets_key to the \
             one that they were written with"
        )))
    }
}

fn bound_to(row: Uuid) -> Aad<[u8; 16]> {
    Aad::from(*row.as_bytes())
}

fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

/// Writes the whole file under another name first: no reader ever meets half a key. One that is there already stays.
fn make_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let draft = path.with_extension(Uuid::new_v4().to_string());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    //! Guards: a secret that is readable at rest, and a key that is silently another one.

    use super::*;

    #[test]
    fn what_was_sealed_opens_with_its_key_and_row_alone() {
        let (vault, other) = (Vault::ephemeral().unwrap(), Vault::ephemeral().unwrap());
        let (row, stranger) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sealed = vault.seal(row, b"sk_live_123").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"sk_live"));
        assert_ne!(sealed, vault.seal(row, b"sk_live_123").unwrap(), "a nonce of its own");
        assert_eq!(vault.open(row, &sealed).unwrap(), b"sk_live_123");
        for (vault, row, sealed) in
            [(&other, row, &sealed[..]), (&vault, stranger, &sealed), (&vault, row, &sealed[..9])]
        {
            assert!(vault.open(row, sealed).unwrap_err().to_string().contains("cannot be opened"));
        }
    }

    #[test]
    fn the_file_of_the_key_is_made_once() {
        let path = std::env::temp_dir().join(format!("kontorion-vault-{}", Uuid::new_v4())).join("secrets.key");
        let (first, second) = (Vault::from_file(&path).unwrap(), Vault::from_file(&path).unwrap());
        assert_eq!(first.fingerprint, second.fingerprint);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(Vault::from_file(&path), Err(KeyError::Form)));
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
