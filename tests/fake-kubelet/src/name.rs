//! What the kubelet accepts as the name of an extended resource.

/// The prefix that quotas put before a resource name; it may not be part of one.
const QUOTA_PREFIX: &str = "requests.";

/// Whether the kubelet would accept a registration under this name.
///
/// It must have a domain prefix which is not Kubernetes' own, and still be a qualified name with `requests.`
/// before it.
pub(crate) fn is_extended_resource(name: &str) -> bool {
    if !name.contains('/') || name.contains("kubernetes.io/") || name.starts_with(QUOTA_PREFIX) {
        return false;
    }
    match format!("{QUOTA_PREFIX}{name}").split_once('/') {
        Some((domain, rest)) => is_subdomain(domain) && is_qualified(rest),
        None => false,
    }
}

fn is_subdomain(domain: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    domain.len() <= 253 && domain.split('.').all(is_label)
}

fn is_qualified(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63 && name.chars().all(inner) && edge(name.chars().next()) && edge(name.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_need_a_foreign_domain() {
        assert!(is_extended_resource("nvidia.com/mig-1g.10gb"));
        assert!(is_extended_resource("nvidia.com/mig-1g.10gb.me_2"));
        for bad in [
            "cpu",
            "kubernetes.io/gpu",
            "node.kubernetes.io/gpu",
            "requests.nvidia.com/gpu",
            "nvidia.com/",
            "/gpu",
            "nvidia.com/a/b",
            "nvidia.com/mig-1g.10gb+me",
            "nvidia.com/-mig",
            "Nvidia.com/gpu",
            "nvidia..com/gpu",
        ] {
            assert!(!is_extended_resource(bad), "{bad}");
        }
        assert!(is_extended_resource(&format!("nvidia.com/{}", "a".repeat(63))));
        assert!(!is_extended_resource(&format!("nvidia.com/{}", "a".repeat(64))));
    }
}
