//! The text format of Prometheus before `OpenMetrics` (0.0.4), which every tool reads: the samples are the same, but what
//! describes them has the samples' name.

/// The same metrics, from what `prometheus-client` writes.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        let described = line.strip_prefix("# ").and_then(|rest| {
            let (word, rest) = rest.split_once(' ')?;
            let (name, rest) = rest.split_once(' ')?;
            Some((word, name, rest))
        });
        match described {
            Some(("HELP", name, text)) => help = Some((name, text)),
            Some(("TYPE", name, kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                if let Some((_, text)) = help.take().filter(|(described, _)| *described == name) {
                    out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
                }
                out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            // Units and the end have no place in it.
            _ if line.starts_with('#') => {}
            _ => out.extend([line, "\n"]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_get_the_names_of_their_samples() {
        let open = "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total{x=\"# HELP y z\"} 1\n\
                    # HELP a Size.\n# TYPE a gauge\n# UNIT a bytes\na 2\n\
                    # HELP b Build.\n# TYPE b info\nb_info{v=\"1\"} 1\n# EOF\n";
        let classic = "# HELP a_calls_total Calls.\n# TYPE a_calls_total counter\na_calls_total{x=\"# HELP y z\"} 1\n\
                       # HELP a Size.\n# TYPE a gauge\na 2\n\
                       # HELP b_info Build.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n";
        assert_eq!(from_open_metrics(open), classic);
    }
}
