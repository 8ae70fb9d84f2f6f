//! Resource names, e.g. `nvidia.com/mig-1g.10gb`.

use std::fmt;
use std::str::FromStr;

use crate::inventory::Profile;

/// The domain in front of every name that NVIDIA's plugin makes.
const DOMAIN: &str = "nvidia.com";

/// The whole name's length limit in NVIDIA's plugin (its `api/config/v1/resources.go`); stricter than
/// Kubernetes' own, which allows 63 for the part behind the slash alone.
const MAX_LENGTH: usize = 63;

/// An extended resource's name, valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(String);

/// The text cannot be an extended resource's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no resource name: {rule}")]
pub struct InvalidResourceName {
    name: String,
    rule: &'static str,
}

impl ResourceName {
    /// `nvidia.com/gpu`: whole GPUs, and slices under the strategy single.
    pub fn gpu() -> Self {
        Self(format!("{DOMAIN}/gpu"))
    }

    /// `nvidia.com/mig-<profile>`, with `.` for `+`, which Kubernetes does not allow.
    pub fn mig(profile: &Profile) -> Result<Self, InvalidResourceName> {
        format!("{DOMAIN}/mig-{}", profile.as_str().replace('+', ".")).parse()
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the slash, e.g. `mig-1g.10gb`.
    pub fn short(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, short)| short)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ResourceName {
    type Err = InvalidResourceName;

    /// Kubernetes' rules for an extended resource: a DNS subdomain that is not `kubernetes.io`, a slash,
    /// and a DNS subdomain; it may not begin with `requests.`, which quotas use.
    fn from_str(name: &str) -> Result<Self, InvalidResourceName> {
        let refuse = |rule| Err(InvalidResourceName { name: name.to_owned(), rule });
        let Some((domain, short)) = name.split_once('/') else {
            return refuse("a domain and a slash have to come first, e.g. nvidia.com/gpu");
        };
        if name.len() > MAX_LENGTH {
            return refuse("it is longer than 63 characters");
        }
        if !is_dns_subdomain(domain) || !is_dns_subdomain(short) {
            return refuse(
                "both sides of the slash consist of lower-case letters, digits, '-' and '.', and begin and end, \
                 as does each part between dots, with a letter or digit",
            );
        }
        if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
            return refuse("kubernetes.io is reserved for Kubernetes itself");
        }
        if name.starts_with("requests.") {
            return refuse("'requests.' in front is reserved for quotas");
        }
        Ok(Self(name.to_owned()))
    }
}

/// RFC 1123: labels of letters, digits and inner dashes, joined by dots.
fn is_dns_subdomain(text: &str) -> bool {
    text.split('.').all(|label| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(inner)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mig(profile: &str) -> String {
        ResourceName::mig(&profile.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn profiles_are_spelled_as_nvidias_plugin_spells_them() {
        assert_eq!(mig("1g.10gb"), "nvidia.com/mig-1g.10gb");
        assert_eq!(mig("1g.10gb+me"), "nvidia.com/mig-1g.10gb.me");
        assert_eq!(mig("1g.24gb+me.all"), "nvidia.com/mig-1g.24gb.me.all");
        assert_eq!(mig("2g.48gb-me"), "nvidia.com/mig-2g.48gb-me");
        assert_eq!(mig("1c.3g.40gb"), "nvidia.com/mig-1c.3g.40gb");
    }

    #[test]
    fn names_that_the_kubelet_would_refuse_cannot_be_made() {
        for name in [
            "gpu",
            "nvidia.com/",
            "/gpu",
            "nvidia.com/GPU",
            "nvidia.com/a/b",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
            "requests.nvidia.com/gpu",
            "nvidia.com/-gpu",
            "nvidia.com/gpu.",
            "nvidia.com/a..b",
            "nvidia..com/gpu",
        ] {
            assert!(name.parse::<ResourceName>().is_err(), "{name}");
        }
        let longest = format!("nvidia.com/{}", "a".repeat(52));
        assert!(longest.parse::<ResourceName>().is_ok());
        assert!(format!("{longest}a").parse::<ResourceName>().is_err());
    }

    proptest! {
        #[test]
        fn every_name_comes_back_from_its_text(text in "[a-z.+-]{0,12}/[a-z0-9.+-]{0,70}") {
            if let Ok(name) = text.parse::<ResourceName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(text.len() <= MAX_LENGTH);
            }
        }

        #[test]
        fn a_profile_has_a_valid_name_or_a_reason(text in "[a-z0-9][a-z0-9.+-]{0,70}") {
            let profile: Profile = text.parse().unwrap();
            match ResourceName::mig(&profile) {
                Ok(name) => prop_assert_eq!(name.as_str().parse::<ResourceName>(), Ok(name.clone())),
                Err(error) => prop_assert!(error.to_string().contains("is no resource name")),
            }
        }
    }
}
