//! Core: secure key release: the policy is evaluated over the token, the key wrapped to the
//! attested key, the answer signed.

use attest::policy::Verdict;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use serde_json::{Value, json};

use super::key::{KeyVersion, random_material};
use super::token::target_key;
use super::wrap::{Encoding, wrap};
use super::{ManagedHsm, bad_parameter, forbidden, text};
use crate::emulator::keys::EmulatorKeys;
use crate::emulator::server::{Answer, Call};
use crate::emulator::{StartError, jose, pem_text};
use crate::hex;
use crate::pki::{Authority, Identity, Validity};

/// What is wrong with a release that the vault signs as if it were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseLie {
    /// Another key's material, under the name and policy of the one that was asked for.
    AnotherMaterial,
    /// States a release policy that admits nobody.
    AnotherPolicy,
    /// Says that it is another version of the key.
    AnotherVersion,
    /// Signed by a chain of the same names that ends in another root.
    ForeignSigner,
    /// The release policy may be changed.
    MutablePolicy,
    /// Answers a request for another key.
    WrongKeyEcho,
    /// Answers a request with another nonce.
    WrongNonceEcho,
}

/// The chain that signs releases, and one that nobody trusts.
pub(in crate::emulator) struct Signers {
    own: Identity,
    foreign: Identity,
}

/// A release request, checked for form.
struct ReleaseRequest<'a> {
    target: &'a str,
    encoding: Encoding,
    nonce: Option<&'a str>,
}

impl Signers {
    pub(in crate::emulator) fn new(
        keys: &EmulatorKeys,
        validity: Validity,
    ) -> Result<Self, StartError> {
        let chain = |root: &_, leaf: &_| {
            // RSA throughout, as a public service's chain is.
            let root = Authority::root("Emulator Release Root", Clone::clone(root), validity)?;
            let intermediate = root.intermediate(
                "Emulator Release CA",
                keys.release_intermediate.clone(),
                validity,
            )?;
            intermediate.issue_server(Clone::clone(leaf), validity)
        };
        Ok(Self {
            own: chain(&keys.release_root, &keys.release)?,
            foreign: chain(&keys.foreign, &keys.foreign)?,
        })
    }

    /// The root to trust, PEM.
    pub(in crate::emulator) fn root_pem(&self) -> Result<String, StartError> {
        let root = self.own.chain.last().unwrap_or(&self.own.certificate);
        Ok(pem_text(&root.to_pem()?))
    }
}

impl ManagedHsm {
    /// `POST /keys/{name}/{version}/release`.
    pub(super) fn release(
        &self,
        call: &Call,
        name: &str,
        version: Option<&str>,
    ) -> Result<Answer, Answer> {
        let body = call.json("BadParameter")?;
        let request = ReleaseRequest::parse(&body)?;
        let keys = self.keys.lock();
        let key = keys.find(name, version)?;
        let claims = self.issuer.verify(request.target, self.clock.now())?;
        let policy = key
            .release_policy()
            .ok_or_else(|| forbidden("the key is not exportable"))?;
        if !matches!(policy.evaluate(&claims), Verdict::Allowed) {
            return Err(forbidden(
                "the token does not satisfy the key's release policy",
            ));
        }
        let lie = self.lies.next();
        let material = match lie {
            Some(ReleaseLie::AnotherMaterial) => random_material()?,
            _ => key.material,
        };
        let ciphertext = wrap(&*target_key(&claims)?, request.encoding, &material)?;
        let asked = format!("{}{}", self.url, call.path.trim_end_matches("/release"));
        let mut payload = json!({
            "request": {
                "api-version": call.parameter("api-version"),
                "enc": request.encoding.as_str(),
                "kid": asked,
            },
            "response": {"key": self.released(name, key, request.encoding, &ciphertext)},
        });
        if let Some(nonce) = request.nonce {
            payload["request"]["nonce"] = nonce.into();
        }
        distort(&mut payload, lie);
        let signer = match lie {
            Some(ReleaseLie::ForeignSigner) => &self.signers.foreign,
            _ => &self.signers.own,
        };
        Ok(Answer::ok(json!({"value": sign(&payload, signer)?})))
    }

    /// The key as a `GET` would show it, with its wrapped material.
    fn released(
        &self,
        name: &str,
        key: &KeyVersion,
        encoding: Encoding,
        ciphertext: &[u8],
    ) -> Value {
        let mut released = key.describe(&self.key_id(name, key.version()));
        let wrapped = json!({
            "schema_version": "1.0",
            "header": {
                "kid": "TpmEphemeralEncryptionKey",
                "alg": "dir",
                "enc": encoding.as_str(),
            },
            "ciphertext": jose::encode(ciphertext),
        });
        released["key"]["key_hsm"] = jose::encode(wrapped.to_string()).into();
        released
    }
}

impl<'a> ReleaseRequest<'a> {
    fn parse(body: &'a Value) -> Result<Self, Answer> {
        let encoding = match body.get("enc").filter(|enc| !enc.is_null()) {
            Some(enc) => enc.as_str().and_then(Encoding::parse),
            None => Some(Encoding::CkmRsaAesKeyWrap),
        };
        Ok(Self {
            target: text(body, "target")?,
            encoding: encoding.ok_or_else(|| bad_parameter("enc is not known"))?,
            nonce: body.get("nonce").and_then(Value::as_str),
        })
    }
}

fn sign(payload: &Value, signer: &Identity) -> Result<String, Answer> {
    let certificate = &signer.certificate;
    let sha1 = certificate.digest(MessageDigest::sha1())?;
    let sha256 = certificate.digest(MessageDigest::sha256())?;
    let mut chain = vec![STANDARD.encode(certificate.to_der()?)];
    for above in &signer.chain {
        chain.push(STANDARD.encode(above.to_der()?));
    }
    let header = json!({
        "alg": "RS256",
        "kid": hex(&sha1).to_ascii_uppercase(),
        "x5t": jose::encode(sha1),
        "typ": "JWT",
        "x5t#S256": jose::encode(sha256),
        "x5c": chain,
    });
    Ok(jose::sign(&header, payload, &signer.key)?)
}

fn distort(payload: &mut Value, lie: Option<ReleaseLie>) {
    let another = |kid: &mut Value| {
        let text = kid.as_str().unwrap_or_default();
        let above = text.rsplit_once('/').map_or(text, |(above, _last)| above);
        *kid = format!("{above}/{}", "5a".repeat(16)).into();
    };
    match lie {
        // These are wrong outside of the payload.
        None | Some(ReleaseLie::AnotherMaterial | ReleaseLie::ForeignSigner) => {}
        Some(ReleaseLie::AnotherVersion) => another(&mut payload["response"]["key"]["key"]["kid"]),
        Some(ReleaseLie::AnotherPolicy) => {
            let policy = r#"{"version":"1.0.0","anyOf":[{"authority":"https://nobody.example","allOf":[{"claim":"x-ms-sevsnpvm-vmpl","equals":0}]}]}"#;
            payload["response"]["key"]["release_policy"]["data"] = jose::encode(policy).into();
        }
        Some(ReleaseLie::MutablePolicy) => {
            payload["response"]["key"]["release_policy"]["immutable"] = false.into();
        }
        Some(ReleaseLie::WrongKeyEcho) => another(&mut payload["request"]["kid"]),
        Some(ReleaseLie::WrongNonceEcho) => payload["request"]["nonce"] = "another".into(),
    }
}
