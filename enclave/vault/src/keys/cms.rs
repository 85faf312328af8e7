//! `CiphertextForRecipient`: how KMS hands a secret to the holder of the key in an attestation document.
//!
//! CMS EnvelopedData (RFC 5652, section 6) in BER: lengths may be indefinite, the encrypted content primitive or in pieces. One
//! recipient, RSAES-OAEP with SHA-256 and MGF1 over SHA-256 (RFC 4055), AES-256-CBC (RFC 3565). CBC has no MAC, so whatever
//! goes wrong behind the parsing has one error: nothing is told that an attacker could ask for again and again. The
//! key is made anew at every start.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use bcder::decode::{Constructed, Content, ContentError, DecodeError, Pos, Primitive, SliceSource, Source};
use bcder::{ConstOid, Mode, OctetString, Oid, Tag};
use zeroize::Zeroizing;

/// Longest message, in bytes: KMS answers are at most 4,096 bytes of plaintext and its envelope.
pub const MAX_LEN: usize = 8 * 1024;

const RSA_LEN: usize = 256;
const IV_LEN: usize = 16;
const AES_BLOCK: usize = 16;

const ENVELOPED_DATA: ConstOid = Oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03]);
const DATA: ConstOid = Oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01]);
const RSAES_OAEP: ConstOid = Oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07]);
const MGF1: ConstOid = Oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08]);
const SHA_256: ConstOid = Oid(&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01]);
const AES_256_CBC: ConstOid = Oid(&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a]);

/// Why a message was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmsError {
    /// It is not the one shape that KMS writes.
    #[error("the CMS message is malformed, or of another kind than KMS writes")]
    Malformed,
    /// It names another recipient's key.
    #[error("the CMS message is for another key")]
    OtherRecipient,
    /// It could not be decrypted; why is not told.
    #[error("the CMS message cannot be decrypted")]
    Decryption,
}

/// The parts of a message.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvelopedData {
    /// SHA-256 of the recipient's SubjectPublicKeyInfo.
    pub recipient: [u8; 32],
    /// The content key under the recipient's RSA key.
    pub encrypted_key: [u8; RSA_LEN],
    /// For CBC.
    pub iv: [u8; IV_LEN],
    /// The content, padded and encrypted.
    pub ciphertext: Vec<u8>,
}

impl EnvelopedData {
    /// Reads exactly one message.
    pub fn parse(bytes: &[u8]) -> Result<Self, CmsError> {
        if bytes.len() > MAX_LEN {
            return Err(CmsError::Malformed);
        }
        let mut source = SliceSource::new(bytes);
        let parsed = Constructed::decode(&mut source, Mode::Ber, |cons| {
            cons.take_sequence(|content_info| {
                ENVELOPED_DATA.skip_if(content_info)?;
                content_info.take_constructed_if(Tag::CTX_0, |explicit| explicit.take_sequence(enveloped_data))
            })
        })
        .map_err(|_| CmsError::Malformed)?;
        if source.is_empty() { Ok(parsed) } else { Err(CmsError::Malformed) }
    }
}

fn enveloped_data<S: Source>(cons: &mut Constructed<'_, S>) -> Result<EnvelopedData, DecodeError<S::Error>> {
    cons.skip_u8_if(2)?;
    // One recipient, named by its key: subjectKeyIdentifier [0].
    let (recipient, encrypted_key) = cons.take_set(|recipients| {
        recipients.take_sequence(|info| {
            info.skip_u8_if(2)?;
            let recipient = info.take_primitive_if(Tag::CTX_0, |prim| exactly(&prim.take_all()?))?;
            info.take_sequence(oaep)?;
            let encrypted_key = exactly(OctetString::take_from(info)?.as_slice().ok_or_else(|| wrong("pieces"))?)?;
            Ok((recipient, encrypted_key))
        })
    })?;
    cons.take_sequence(|content| {
        DATA.skip_if(content)?;
        let iv = content.take_sequence(|algorithm| {
            AES_256_CBC.skip_if(algorithm)?;
            exactly(OctetString::take_from(algorithm)?.as_slice().ok_or_else(|| wrong("pieces"))?)
        })?;
        let ciphertext = content.take_value_if(Tag::CTX_0, |value| match value {
            Content::Primitive(prim) => take_all(prim),
            Content::Constructed(pieces) => {
                let mut all = Vec::new();
                while let Some(piece) = pieces.take_opt_primitive_if(Tag::OCTET_STRING, take_all)? {
                    all.extend_from_slice(&piece);
                }
                Ok(all)
            }
        })?;
        if ciphertext.is_empty() || ciphertext.len() % AES_BLOCK != 0 {
            return Err(wrong("ciphertext of no whole blocks"));
        }
        Ok(EnvelopedData { recipient, encrypted_key, iv, ciphertext })
    })
}

/// RSAES-OAEP with SHA-256 for both the hash and MGF1, and no label: every other choice is another algorithm.
fn oaep<S: Source>(cons: &mut Constructed<'_, S>) -> Result<(), DecodeError<S::Error>> {
    RSAES_OAEP.skip_if(cons)?;
    cons.take_sequence(|parameters| {
        parameters.take_constructed_if(Tag::CTX_0, |hash| hash.take_sequence(sha256))?;
        parameters.take_constructed_if(Tag::CTX_1, |mask| {
            mask.take_sequence(|mask| {
                MGF1.skip_if(mask)?;
                mask.take_sequence(sha256)
            })
        })
    })
}

fn sha256<S: Source>(cons: &mut Constructed<'_, S>) -> Result<(), DecodeError<S::Error>> {
    SHA_256.skip_if(cons)?;
    cons.take_opt_null()
}

fn take_all<S: Source>(prim: &mut Primitive<'_, S>) -> Result<Vec<u8>, DecodeError<S::Error>> {
    Ok(prim.take_all()?.to_vec())
}

fn exactly<const N: usize, E>(bytes: &[u8]) -> Result<[u8; N], DecodeError<E>> {
    bytes.try_into().map_err(|_| wrong("length"))
}

fn wrong<E>(what: &'static str) -> DecodeError<E> {
    DecodeError::content(ContentError::from_static(what), Pos::default())
}

/// The key to which KMS encrypts its answers. It never leaves this process.
pub struct RecipientKey {
    private: OaepPrivateDecryptingKey,
    spki: Vec<u8>,
    identifier: [u8; 32],
}

impl RecipientKey {
    /// A fresh RSA-2048 key.
    pub fn generate() -> Option<Self> {
        Self::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?)
    }

    /// A key that somebody else knows too: for published samples.
    #[doc(hidden)]
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        Self::new(PrivateDecryptingKey::from_pkcs8(der).ok()?)
    }

    fn new(private: PrivateDecryptingKey) -> Option<Self> {
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().ok()?;
        let spki = spki.as_ref().to_vec();
        let identifier = digest(&SHA256, &spki).as_ref().try_into().ok()?;
        Some(Self { private: OaepPrivateDecryptingKey::new(private).ok()?, spki, identifier })
    }

    /// SubjectPublicKeyInfo, DER: what goes into the attestation document.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Opens a message for this key.
    pub fn open(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, CmsError> {
        let message = EnvelopedData::parse(message)?;
        if message.recipient != self.identifier {
            return Err(CmsError::OtherRecipient);
        }
        self.decrypt(message).ok_or(CmsError::Decryption)
    }

    fn decrypt(&self, message: EnvelopedData) -> Option<Zeroizing<Vec<u8>>> {
        let mut output = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let content_key =
            self.private.decrypt(&OAEP_SHA256_MGF1SHA256, &message.encrypted_key, &mut output, None).ok()?;
        let key = UnboundCipherKey::new(&AES_256, content_key).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let context = DecryptionContext::Iv128(FixedLength::from(message.iv));
        let mut in_place = Zeroizing::new(message.ciphertext);
        let plaintext = key.decrypt(&mut in_place, context).ok()?;
        Some(Zeroizing::new(plaintext.to_vec()))
    }
}
