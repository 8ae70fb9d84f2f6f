use std::path::Path;

use super::*;

fn given(values: &[(&str, &str)]) -> Values {
    values.iter().fold(Values::default(), |all, (flag, text)| all.with(flag, text))
}

fn config(values: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::new(&given(values), 1000)
}

fn mistakes(values: &[(&str, &str)]) -> Vec<String> {
    config(values).unwrap_err().mistakes
}

#[test]
fn the_defaults_are_those_of_nvidias_plugin() {
    let config = config(&[]).unwrap();
    assert_eq!(config.policy.offer.strategy, MigStrategy::None);
    assert!(config.policy.fail_on_init_error);
    assert_eq!(config.paths.driver_root, Path::new("/driver-root"));
    assert_eq!(config.rules.host_dev_root, Path::new("/"));
    assert_eq!(config.kubelet_socket, Path::new("/var/lib/kubelet/device-plugins/kubelet.sock"));
}

#[test]
fn nodes_that_exist_are_named_unless_told_otherwise() {
    let specs = |values: &[_]| config(values).unwrap().policy.offer.device_specs;
    assert_eq!(specs(&[]), DeviceSpecs::Existing);
    assert_eq!(specs(&[("pass-device-specs", "true")]), DeviceSpecs::Required);
    assert_eq!(specs(&[("pass-device-specs", "False")]), DeviceSpecs::Omitted);
}

#[test]
fn the_dev_root_on_the_host_is_the_driver_root_unless_it_is_given() {
    let root = |values: &[_]| config(values).unwrap().rules.host_dev_root;
    assert_eq!(root(&[("nvidia-driver-root", "/run/nvidia/driver")]), Path::new("/run/nvidia/driver"));
    let both = [("nvidia-driver-root", "/run/nvidia/driver"), ("nvidia-dev-root", "/")];
    assert_eq!(root(&both), Path::new("/"));
}

#[test]
fn intervals_have_a_unit_and_zero_means_never() {
    let interval = |text| config(&[("rescan-interval", text)]).unwrap().rescan_interval;
    assert_eq!(interval("1m30s"), Some(Duration::from_secs(90)));
    assert_eq!(interval("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(interval("0"), None);
    assert_eq!(interval("0s"), None);
}

#[test]
fn root_our_own_user_and_those_named_may_connect() {
    let uids = config(&[("allowed-uid", "7, 8")]).unwrap().allowed_uids;
    assert_eq!(uids, HashSet::from([0, 7, 8, 1000]));
}

#[test]
fn all_mistakes_are_told_at_once_with_what_would_be_right() {
    let told = mistakes(&[
        ("mig-strategy", "mixd"),
        ("fail-on-init-error", "yes"),
        ("rescan-interval", "10"),
        ("nvidia-dev-root", "dev"),
        ("allowed-uid", "root"),
    ]);
    assert_eq!(
        told,
        [
            r#"--mig-strategy: "mixd" cannot be used: it is one of none, single, mixed (did you mean "mixed"?)"#,
            r#"--fail-on-init-error: "yes" cannot be used: it is true or false"#,
            r#"--rescan-interval: "10" cannot be used: it is a time with a unit, such as 500ms, 10s, 1m30s, or 0"#,
            r#"--nvidia-dev-root: "dev" cannot be used: it is an absolute path"#,
            r#"--allowed-uid: "root" cannot be used: it is a user's number, or several with commas between"#,
        ]
    );
}

#[test]
fn a_folder_that_leaves_no_room_for_a_sockets_name_is_refused() {
    let socket = format!("/{}/kubelet.sock", "x".repeat(90));
    let told = mistakes(&[("kubelet-socket", &socket)]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("too long") && told[0].contains("107"), "{}", told[0]);
    assert!(mistakes(&[("kubelet-socket", "/")])[0].contains("a file's path"));
}

#[test]
fn a_log_level_is_a_word_or_levels_per_module() {
    let level = |text| {
        let values = given(&[("log-level", text)]);
        Config::new(&values, 1000).map(|_| log(&values).level)
    };
    assert!(level("debug").unwrap().to_string().contains("mig_device_plugin=debug"));
    assert!(level("info,mig_device_plugin::nvml=trace").unwrap().to_string().contains("nvml=trace"));
    let told = level("loud=very").unwrap_err().mistakes;
    assert!(told[0].starts_with("--log-level: \"loud=very\" cannot be used"), "{}", told[0]);
}
