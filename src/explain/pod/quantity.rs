//! Quantities as Kubernetes writes them: `1`, `"2"`, `1000m`, `1k`, `1e3`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A quantity as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity(String);

/// What makes a quantity useless for devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCount {
    /// It is none.
    #[error("is no quantity")]
    NotAQuantity,
    /// Devices come whole.
    #[error("is no whole number, and devices are given whole")]
    Fraction,
    /// Less than none.
    #[error("is less than 0")]
    Negative,
}

/// What stands behind a number, and by which power of which base it multiplies.
const SUFFIXES: [(&str, i128, i32); 15] = [
    ("Ki", 1024, 1),
    ("Mi", 1024, 2),
    ("Gi", 1024, 3),
    ("Ti", 1024, 4),
    ("Pi", 1024, 5),
    ("Ei", 1024, 6),
    ("n", 10, -9),
    ("u", 10, -6),
    ("m", 10, -3),
    ("k", 10, 3),
    ("M", 10, 6),
    ("G", 10, 9),
    ("T", 10, 12),
    ("P", 10, 15),
    ("E", 10, 18),
];

impl Quantity {
    /// How many devices that is.
    pub fn count(&self) -> Result<u64, BadCount> {
        let (digits, base, power) = self.split()?;
        let negative = digits.starts_with('-');
        let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(digits);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let is_number = |part: &str| part.chars().all(|c| c.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !is_number(whole) || !is_number(fraction) {
            return Err(BadCount::NotAQuantity);
        }
        // digits × 10^-(length of the fraction) × base^power, in whole numbers.
        let number = format!("{whole}{fraction}").parse::<i128>().ok().ok_or(BadCount::NotAQuantity)?;
        let fraction = u32::try_from(fraction.len()).ok().ok_or(BadCount::NotAQuantity)?;
        let scale = base.checked_pow(power.unsigned_abs()).ok_or(BadCount::NotAQuantity)?;
        let shift = 10_i128.checked_pow(fraction).ok_or(BadCount::NotAQuantity)?;
        let (up, down) = if power < 0 { (1, shift.checked_mul(scale)) } else { (scale, Some(shift)) };
        let up = number.checked_mul(up).ok_or(BadCount::NotAQuantity)?;
        let down = down.ok_or(BadCount::NotAQuantity)?;
        if up % down != 0 {
            return Err(BadCount::Fraction);
        }
        match up / down {
            0 => Ok(0),
            _ if negative => Err(BadCount::Negative),
            count => u64::try_from(count).ok().ok_or(BadCount::NotAQuantity),
        }
    }

    /// The number, and what it is multiplied by: a base and its power.
    fn split(&self) -> Result<(&str, i128, i32), BadCount> {
        let text = self.0.as_str();
        for (suffix, base, power) in SUFFIXES {
            if let Some(number) = text.strip_suffix(suffix) {
                return Ok((number, base, power));
            }
        }
        match text.split_once(['e', 'E']) {
            None => Ok((text, 10, 0)),
            Some((number, power)) => {
                let power: i32 = power.parse().ok().ok_or(BadCount::NotAQuantity)?;
                Ok((number, 10, power))
            }
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

/// Kubernetes takes a quantity as a string or as a number, and `null` for 0.
struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity, such as 1")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        Ok(text.into())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Quantity, E> {
        Ok("0".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Result<u64, BadCount> {
        Quantity::from(text).count()
    }

    #[test]
    fn whole_numbers_are_read_however_they_are_written() {
        for (text, number) in [
            ("0", 0),
            ("1", 1),
            ("+2", 2),
            ("1.0", 1),
            ("2000m", 2),
            ("1k", 1000),
            ("1Ki", 1024),
            ("0.5k", 500),
            ("1e3", 1000),
            ("20e-1", 2),
            ("-0", 0),
            (".5k", 500),
        ] {
            assert_eq!(count(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn fractions_and_nonsense_are_told_apart() {
        for text in ["0.5", "500m", "1e-1", "1n"] {
            assert_eq!(count(text), Err(BadCount::Fraction), "{text}");
        }
        assert_eq!(count("-1"), Err(BadCount::Negative));
        for text in
            ["", "one", "1x", "m", "1 ", "1.2.3", "--1", "1e99", "1e-99", "99999999999999999999E", "1e"]
        {
            assert_eq!(count(text), Err(BadCount::NotAQuantity), "{text}");
        }
    }

    #[test]
    fn numbers_strings_and_nothing_are_taken_from_yaml() {
        let list: Vec<Quantity> = serde_saphyr::from_str("[1, \"2\", 500m, 1.5, -1, null]").unwrap();
        let texts: Vec<_> = list.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1", "2", "500m", "1.5", "-1", "0"]);
    }
}
