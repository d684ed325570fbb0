//! The clear text of a key: `sk_live_` or `sk_test_` and 64 hexadecimal digits (api-keys.md, rules 1, 2 and 4).

use domain::WorkspaceMode;
use sha2::Digest;

/// SHA-256 of a token: what is stored and looked up.
pub type TokenHash = [u8; 32];

domain::wire_enum! {
    /// What a key's prefix says of its workspace.
    pub enum ApiKeyType {
        /// Real money.
        SkLive = "sk_live",
        /// Sandbox.
        SkTest = "sk_test",
    }
}

impl ApiKeyType {
    /// The type that belongs to a workspace.
    #[must_use]
    pub fn of(mode: WorkspaceMode) -> Self {
        match mode {
            WorkspaceMode::Live => Self::SkLive,
            WorkspaceMode::Sandbox => Self::SkTest,
        }
    }
}

/// A key's clear text. It exists in the answer that shows it once, and nowhere else.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// 32 random bytes under the prefix of the type.
    #[must_use]
    pub fn generate(key_type: ApiKeyType) -> Self {
        let mut secret = [0_u8; 32];
        rand::fill(&mut secret);
        Self(format!("{key_type}_{}", hex::encode(secret)))
    }

    /// The clear text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The type plus the first 8 hexadecimal digits, for recognition in lists.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.0.chars().take("sk_live_".len() + 8).collect()
    }

    /// SHA-256. The token has 256 random bits, so no slow hash is needed.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        hash(&self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({}…)", self.prefix())
    }
}

/// Hash of a presented token, or `None` when it does not have the form of one.
#[must_use]
pub fn hash_presented(text: &str) -> Option<TokenHash> {
    let secret = text.strip_prefix("sk_live_").or_else(|| text.strip_prefix("sk_test_"))?;
    let good = secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    good.then(|| hash(text))
}

fn hash(text: &str) -> TokenHash {
    sha2::Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_documented_form() {
        for (key_type, prefix) in [(ApiKeyType::SkLive, "sk_live_"), (ApiKeyType::SkTest, "sk_test_")] {
            let token = Token::generate(key_type);
            assert_eq!(token.reveal().len(), 72);
            assert!(token.reveal().starts_with(prefix));
            assert_eq!(hash_presented(token.reveal()), Some(token.hash()));
            assert_eq!(token.prefix(), token.reveal()[..16]);
            assert!(!format!("{token:?}").contains(&token.reveal()[16..]));
        }
    }

    #[test]
    fn other_text_is_no_token() {
        let hex = "a".repeat(64);
        for wrong in [
            "",
            "sk_live_",
            &format!("sk_prod_{hex}"),
            &format!("sk_live_{}", "A".repeat(64)),
            &format!("sk_live_{hex}0"),
        ] {
            assert_eq!(hash_presented(wrong), None, "{wrong}");
        }
    }
}
