//! Passwords, as EIP-2335 normalises them, and as wallets that did it wrongly have.
//!
//! Two faults are in keystores that people have. Version 1.1.3 of go-eth2-wallet-encryptor-keystorev4, and Prysm 5 with it, kept the first
//! character of each normalisation segment alone: `contraseña-ü` became `contrasena-u`, and of a Hangul syllable its first consonant was
//! left. And some programs take the first line of a password file, others all of it.

use std::fmt;

use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
use zeroize::Zeroizing;

/// How a password was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// As EIP-2335 says: NFKD, without control characters.
    Standard,
    /// Without what follows the first character of each normalisation segment.
    WithoutMarks,
    /// The first line of several.
    FirstLine,
    /// Both.
    FirstLineWithoutMarks,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standard => "the password as EIP-2335 normalises it",
            Self::WithoutMarks => {
                "the password without its accents and other marks, as go-eth2-wallet-encryptor-keystorev4 1.1.3 (Prysm 5) read it"
            }
            Self::FirstLine => "the first line of the password alone",
            Self::FirstLineWithoutMarks => {
                "the first line of the password alone, without its accents and other marks, as \
                 go-eth2-wallet-encryptor-keystorev4 1.1.3 (Prysm 5) read it"
            }
        })
    }
}

/// What a password may mean to a KDF, the right form first; each once.
pub fn forms(password: &str) -> Vec<(Form, Zeroizing<String>)> {
    let password = password.strip_prefix('\u{feff}').unwrap_or(password);
    let first = password.split(['\r', '\n']).next().unwrap_or_default();
    let mut forms: Vec<(Form, Zeroizing<String>)> = Vec::new();
    for (form, text) in [
        (Form::Standard, normalized(password)),
        (Form::WithoutMarks, without_marks(password)),
        (Form::FirstLine, normalized(first)),
        (Form::FirstLineWithoutMarks, without_marks(first)),
    ] {
        // A password of nothing opens nothing that anyone meant to close.
        let is_new = forms.iter().all(|(_, known)| *known != text);
        if is_new && (form == Form::Standard || !text.is_empty()) {
            forms.push((form, text));
        }
    }
    forms
}

/// NFKD, then without control characters (EIP-2335, «Password requirements»: C0, C1 and Delete).
fn normalized(password: &str) -> Zeroizing<String> {
    Zeroizing::new(password.nfkd().filter(|c| !c.is_control()).collect())
}

/// The same, and of each normalisation segment the first character alone.
fn without_marks(password: &str) -> Zeroizing<String> {
    let starts = |(place, c): &(usize, char)| *place == 0 || !continues_a_segment(*c);
    Zeroizing::new(password.nfkd().enumerate().filter(starts).map(|(_, c)| c).filter(|c| !c.is_control()).collect())
}

/// Marks; and the vowels and final consonants of Hangul, which compose with what stands before them.
fn continues_a_segment(c: char) -> bool {
    canonical_combining_class(c) != 0 || is_nfc_quick(std::iter::once(c)) == IsNormalized::Maybe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms_of(password: &str) -> Vec<(Form, String)> {
        forms(password).into_iter().map(|(form, text)| (form, text.to_string())).collect()
    }

    #[test]
    fn a_plain_password_has_one_form() {
        for (password, normalised) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("\u{feff}secret\r\n", "secret"),
            ("𝔱𝔢𝔰𝔱🔑", "test🔑"),
            ("ﬁ", "fi"),
        ] {
            assert_eq!(forms_of(password), [(Form::Standard, normalised.to_owned())], "{password}");
        }
    }

    /// `altNormPassphrase` of go-eth2-wallet-encryptor-keystorev4, with its own example.
    #[test]
    fn passwords_lose_their_marks_as_prysm_5_lost_them() {
        for (password, lost) in [
            ("üöüöäöüöü", "uouoaouou"),
            ("contraseña-ü", "contrasena-u"),
            // Of each syllable its first consonant, whether it was typed as one character or as letters.
            ("한국", "\u{1112}\u{1100}"),
            ("\u{1112}\u{1161}\u{11ab}", "\u{1112}"),
            ("が", "か"),
        ] {
            let standard: String = password.nfkd().collect();
            let expected = [(Form::Standard, standard), (Form::WithoutMarks, lost.to_owned())];
            assert_eq!(forms_of(password), expected, "{password}");
        }
    }

    #[test]
    fn of_several_lines_the_first_is_tried_too() {
        let expected = [
            (Form::Standard, "u\u{308}no".to_owned()),
            (Form::WithoutMarks, "uno".to_owned()),
            (Form::FirstLine, "u\u{308}".to_owned()),
            (Form::FirstLineWithoutMarks, "u".to_owned()),
        ];
        assert_eq!(forms_of("ü\r\nno\r\n"), expected);
    }

    /// EIP-2335, «Password requirements»: C0, C1 and Delete.
    #[test]
    fn control_characters_do_not_count() {
        let password: String = ['\0', 'a', '\u{1f}', 'b', '\u{7f}', 'c', '\u{80}', '\u{9f}', 'd'].iter().collect();
        assert_eq!(*normalized(&password), "abcd");
        assert_eq!(*normalized("a b\u{a0}c"), "a b c");
    }
}
