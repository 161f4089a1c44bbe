//! Issuers' keys: each signs tokens, and shows its public half as a JWK. The library's own tests use this file too.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// FOR TESTS ONLY: an RSA key of 2048 bits as PKCS#1, made for this file, since making one takes a second.
const TEST_ONLY_RSA_KEY: &str = "MIIEpAIBAAKCAQEA3sZ/qd9YEAE6FidIMFTXDxraTCTBQeZqLEuPXHzhF4w/gUfHqGH7JNKOUOU8VQjJN2YS+j9KWhNscF1ehxj1\
     0+cgUJL9OV910gdjZYoSReSiPxGPblgeNH2psSjSJqBpAWjVi+7pAh6kiSt1rWbCRIUJOPOcb9OXiH3vc6dYeEx1VKhyitAIV3Xk\
     wjNlbmzfUsOzJnKwCGwI2/0/eBrmB4HqBVHGIOZ/juT8GjaEknnXLpa7uFXuambTtFUTME9rpw3qpr1eU3hyd1flofH/QYQiRKtV\
     F4S0QnyI1j2d/AzDqUsRK/wYXgnJfpHoCW6Dp2yu+IPwMO1dXVThk+nL/wIDAQABAoIBAEdjkd6UeWprkjsuLGZ8kYxAHStgbePZ\
     3DVEo3TOee1rXqBlqbguaeYzaTLIOwy+64hKuBMkfAWgitP5P8UIPSLCQqs/Z1Fe42lCP9p2pANs0Idob6+7IjbM/DeO7sU9C1lN\
     yHz2uwmYWz6vxB6kuuVtQnbTLlLxmfI99SF5Q5MMyE/+2BV5yQ5GOMST65IdsQKnCPBpiypG5D6EOt+XWQ5hV/CQa10E4ayXQH01\
     LS4Q8imMbd9eSzllcwULB4V4htYIQkpZdQQq00nryydHChv3EM5I/trK2zADd22SudM4kP1w2FFVaw7ZPM5F4yDqHHT7IsXewIJs\
     RmZ3ZpDYcfECgYEA7x2KR5s8hxFVn2uEHx8L2rCaIg9BDIBWUnDXgKQOyb3ySJPWDPi1R7Zts4P77WH4Nl7bVdEnZWRy+bbnkeo8\
     ddHJHnzgpIhBrC4owgXj3ZnLUAr9VcsGOIK4UHbKHHeDGMAl0hFZUpnoeclCAPyd0bZROKUYcr+Wj//9raqC2y8CgYEA7oGVDU4b\
     sWXT7UVqcbkQ1VVl1L/pErikM+Sz10uG8X/B3C+mIb0MefAdXB8Ewz1ghkZV9QYP5tHoKzcpyOsKn/ywUv3OU0vGCI7JKPKhKGPO\
     MT6/M4DdOKQLojumAKsLygGePlPskdjsB1nCffvyrmfdBiH100FjRjpKttGpqDECgYEAibFeDowDF9hQkQPNykoLfnxR1akpETTa\
     AJFAV7ChX2UFHuwax890PH59v3ESYokW8OBAt7NAV2+3kbrUsL7M4B/VC7xnc/eOscLG76uKovJMFKSva3cE9we3cYZmLmxXzqnf\
     XY9l+13rdC4D1yOhEcFGFjNj17gh0HxeLWJSBjsCgYATWKeCgMd2SFA8etj7iIt5AohUDY0WW6vWGcMMv6+ef0J2XdcX/YG5kmSP\
     SGTWgXAG9EWcrnUzv+sZNkxJY+dkutaCpNvLneXeY9alX6j64b2j+PcBcn5/Ta8z5aq9eyJlrGPtolkaK4JZxkokdf9lbj9bc/3A\
     uRkYZToSQkeEwQKBgQDEmMjZIBxBs53jJ30QPNdybFEakL3lUTsBWVy+XpQKaJiRRZVmQtJK4/WeGUKn+COltRRjFKVZMLomByME\
     krGeojJwchVZOAyBf0+PBWzh1nmi+40DVbgB3XA8v/ETGJ617GhyPF0bwc51tDNbwJcSLosjRVAKIe5PP0gQh06oIA==";
/// Its modulus.
const TEST_ONLY_RSA_MODULUS: &str = "3sZ_qd9YEAE6FidIMFTXDxraTCTBQeZqLEuPXHzhF4w_gUfHqGH7JNKOUOU8VQjJN2YS-j9KWhNscF1ehxj10-\
     cgUJL9OV910gdjZYoSReSiPxGPblgeNH2psSjSJqBpAWjVi-\
     7pAh6kiSt1rWbCRIUJOPOcb9OXiH3vc6dYeEx1VKhyitAIV3XkwjNlbmzfUsOzJnKwCGwI2_0_eBrmB4HqBVHGIOZ_juT8GjaEkn\
     nXLpa7uFXuambTtFUTME9rpw3qpr1eU3hyd1flofH_QYQiRKtVF4S0QnyI1j2d_AzDqUsRK_wYXgnJfpHoCW6Dp2yu-\
     IPwMO1dXVThk-nL_w";

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rs256,
    Es256,
    Es384,
    Ed25519,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Rs256, Kind::Es256, Kind::Es384, Kind::Ed25519];
}

/// A private key and its id.
pub(crate) struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

impl Signer {
    /// A new key; of kind RS256, always the same.
    pub(crate) fn new(kind: Kind, kid: &str) -> Signer {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let made = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
        // The point, uncompressed, is a 4 and both coordinates.
        let elliptic = |curve: &str, pair: &KeyPair| {
            let (x, y) = pair.public_key_raw()[1..].split_at(pair.public_key_raw().len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": part(x), "y": part(y) })
        };
        let (algorithm, key, mut jwk) = match kind {
            Kind::Rs256 => {
                let der = STANDARD.decode(TEST_ONLY_RSA_KEY).expect("base64");
                let jwk = json!({ "kty": "RSA", "n": TEST_ONLY_RSA_MODULUS, "e": "AQAB" });
                (Algorithm::RS256, EncodingKey::from_rsa_der(&der), jwk)
            }
            Kind::Es256 => {
                let pair = made(&rcgen::PKCS_ECDSA_P256_SHA256);
                (Algorithm::ES256, EncodingKey::from_ec_der(pair.serialized_der()), elliptic("P-256", &pair))
            }
            Kind::Es384 => {
                let pair = made(&rcgen::PKCS_ECDSA_P384_SHA384);
                (Algorithm::ES384, EncodingKey::from_ec_der(pair.serialized_der()), elliptic("P-384", &pair))
            }
            Kind::Ed25519 => {
                let pair = made(&rcgen::PKCS_ED25519);
                let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": part(pair.public_key_raw()) });
                (Algorithm::EdDSA, EncodingKey::from_ed_der(pair.serialized_der()), jwk)
            }
        };
        jwk["kid"] = kid.into();
        Signer { key, algorithm, jwk }
    }

    /// The public half.
    pub(crate) fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// A token with this key's algorithm and id in its header.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": format!("{:?}", self.algorithm), "kid": self.jwk["kid"] }), claims)
    }

    /// A token with a header that may say anything.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).expect("signed");
        format!("{message}.{signature}")
    }
}

/// The text of a key set.
pub(crate) fn key_set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}
