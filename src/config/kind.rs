//! What a value may be: one rule each for flags, variables and the file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::filter::Targets;

use super::near::did_you_mean;
use crate::health::Check;
use crate::inventory::Profile;
use crate::resource::ResourceName;
use crate::resource::policy::{DeviceRef, Selector};

/// More replicas of one device than this would not fit into the kubelet's list of a node (16 MiB).
const MAX_REPLICAS: u32 = 10_000;

/// The words that a value is chosen from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    /// What may be chosen.
    pub allowed: &'static [&'static str],
    /// What NVIDIA's plugin takes and this one does not, with the reason.
    pub refused: &'static [(&'static str, &'static str)],
}

/// What a value may be. Lists are texts with commas between.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One of a few words.
    Choice(Words),
    /// Some of a few words.
    Choices(Words),
    /// What Go's `strconv.ParseBool` takes, since NVIDIA's plugin is configured with that.
    Boolean,
    /// A time with its unit, or 0.
    Duration,
    /// An absolute path.
    Path,
    /// The same; an empty one counts as none.
    OptionalPath,
    /// Any path; an empty one counts as none.
    File,
    /// Anything.
    Text,
    /// A domain and a slash.
    AnnotationPrefix,
    /// Users' numbers.
    Users,
    /// IMEX channels.
    Channels,
    /// Devices and profiles.
    Selectors,
    /// An address to listen on; an empty one is none, also where there is a default.
    Address,
    /// Health checks.
    Checks,
    /// A level, or levels per module.
    Level,
    /// A resource's name.
    Name,
    /// Part of a product's name.
    Pattern,
    /// Part of a profile's name.
    ProfilePattern,
    /// How many replicas.
    Replicas,
    /// `all`, how many, or which.
    Devices,
    /// Nothing: it is known, but not done here, for this reason.
    Refused(&'static str),
}

impl Kind {
    /// Whether the file may have a list for it.
    pub(super) fn is_list(&self) -> bool {
        matches!(
            self,
            Self::Choices(_) | Self::Users | Self::Channels | Self::Selectors | Self::Devices | Self::Checks
        )
    }

    /// Whether an empty text counts as none.
    pub(super) fn may_be_empty(&self) -> bool {
        matches!(self, Self::OptionalPath | Self::File)
    }

    /// Whether an empty text is a value like others, also in a variable.
    pub(super) fn takes_empty(&self) -> bool {
        matches!(self, Self::Address)
    }

    /// What is allowed, as the end of the sentence "it is …".
    pub(super) fn rule(&self) -> String {
        match self {
            Self::Choice(words) => match words.allowed {
                [only] => (*only).to_owned(),
                words => format!("one of {}", words.join(", ")),
            },
            Self::Choices(words) => format!("one or more of {}", words.allowed.join(", ")),
            Self::Boolean => "true or false".to_owned(),
            Self::Duration => "a time with a unit, such as 500ms, 10s, 1m30s, or 0".to_owned(),
            Self::Path | Self::OptionalPath => "an absolute path".to_owned(),
            Self::File => "a path".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::AnnotationPrefix => "a domain and a slash, such as cdi.k8s.io/".to_owned(),
            Self::Users => "a user's number, or several with commas between".to_owned(),
            Self::Channels => "nothing, or 0".to_owned(),
            Self::Selectors => {
                "a UUID (GPU-… or MIG-…), an index (6, or 0:3 for MIG device 3 of GPU 0) or a profile \
                                (1g.10gb), or several with commas between"
                    .to_owned()
            }
            Self::Checks => "all, xids, or Xids by number, with commas between".to_owned(),
            Self::Address => {
                "empty, a port behind a colon (:9413), or an IP address and a port (127.0.0.1:9413, [::1]:9413)"
                    .to_owned()
            }
            Self::Level => {
                "error, warn, info, debug or trace, or module=level pairs with commas between".to_owned()
            }
            Self::Name => "a resource's name, such as nvidia.com/gpu".to_owned(),
            Self::Pattern => "a product's name, with * for any text".to_owned(),
            Self::ProfilePattern => "a MIG profile, such as 1g.10gb, with * for any text".to_owned(),
            Self::Replicas => format!("a number from 2 to {MAX_REPLICAS}"),
            Self::Devices => {
                "all, how many (at least 1), or a list of UUIDs (GPU-… or MIG-…), indices (6) and GPU:MIG \
                              indices (0:3)"
                    .to_owned()
            }
            Self::Refused(_) => "nothing".to_owned(),
        }
    }

    /// Says what is wrong with `text`, if something is, as the end of the sentence "… cannot be used: …".
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let allowed = match self {
            Self::Choice(words) => return words.check(text, self),
            Self::Choices(words) => return parts(text).try_for_each(|part| words.check(part, self)),
            Self::Name => return name(text).map(drop),
            Self::Refused(reason) => return Err((*reason).to_owned()),
            Self::Boolean => boolean(text).is_some(),
            Self::Duration => duration(text).is_some(),
            Self::Path => Path::new(text).is_absolute(),
            Self::OptionalPath => text.is_empty() || Path::new(text).is_absolute(),
            Self::File | Self::Text => true,
            // Something follows it in a key, and then the same rules hold as for a resource's name.
            Self::AnnotationPrefix => {
                text.ends_with('/') && format!("{text}x").parse::<ResourceName>().is_ok()
            }
            Self::Users => parts(text).all(|part| part.parse::<u32>().is_ok()),
            Self::Channels => parts(text).all(|part| part.parse() == Ok(0_u32)),
            Self::Selectors => parts(text).all(|part| selector(part).is_some()),
            Self::Address => text.is_empty() || address(text).is_some(),
            Self::Checks => parts(text).all(|part| part.parse::<Check>().is_ok()),
            Self::Level => text.parse::<Level>().is_ok() || text.parse::<Targets>().is_ok(),
            Self::Pattern => !text.trim().is_empty(),
            Self::ProfilePattern => {
                let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".+-*".contains(c);
                !text.is_empty() && text.chars().all(fits)
            }
            Self::Replicas => text.parse().is_ok_and(|number: u32| (2..=MAX_REPLICAS).contains(&number)),
            Self::Devices => text == "all" || text.parse().is_ok_and(|count: u32| count > 0),
        };
        if allowed { Ok(()) } else { Err(format!("it is {}", self.rule())) }
    }
}

impl Words {
    fn check(&self, text: &str, kind: &Kind) -> Result<(), String> {
        if self.allowed.contains(&text) {
            return Ok(());
        }
        if let Some((_, reason)) = self.refused.iter().find(|(word, _)| *word == text) {
            return Err((*reason).to_owned());
        }
        Err(format!("it is {}{}", kind.rule(), did_you_mean(text, self.allowed.iter().copied())))
    }
}

/// What stands between commas; an empty text is an empty list.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(move |_| !text.trim().is_empty())
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// An address to listen on; without a host it is every one of this machine, by IPv6 and IPv4.
pub(super) fn address(text: &str) -> Option<SocketAddr> {
    let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    whole.parse().ok()
}

/// A time with a unit, or 0.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() }
}

/// A device or a profile. A word that only might be a profile of a coming driver is not taken, since it might as
/// well be a slip.
pub(super) fn selector(text: &str) -> Option<Selector> {
    if let Ok(device) = text.parse::<DeviceRef>() {
        return Some(Selector::Device(device));
    }
    let profile: Profile = text.parse().ok()?;
    profile.gpu_slices().is_some().then_some(Selector::Profile(profile))
}

/// A resource's name; one without a domain gets NVIDIA's, as in its plugin.
pub(super) fn name(text: &str) -> Result<ResourceName, String> {
    let whole = if text.contains('/') { text.to_owned() } else { format!("nvidia.com/{text}") };
    whole.parse::<ResourceName>().map_err(|error| error.to_string())
}
