use serde::Serialize;

/// What is known of a GPU's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Calls that were made, and how many of them failed.
    pub calls: u64,
    #[expect(missing_docs, reason = "as above")]
    pub failed: u64,
    /// Bytes of its memory in use, by any program, and in all; 0 where that is unknown.
    pub used_bytes: u64,
    #[expect(missing_docs, reason = "as above")]
    pub total_bytes: u64,
}

/// How soon something should be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, with less to spare than is good.
    Medium,
    /// Answers are lost or late.
    High,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How soon something should be done.
    pub severity: Severity,
    /// What is wrong, with the figure.
    pub fault: String,
    /// What to do.
    pub recommendation: &'static str,
}

/// The share of calls that should succeed, at least.
const SUCCESS: f64 = 0.8;
/// The share of the memory that may be in use.
const MEMORY: f64 = 0.9;

/// What is wrong with a GPU, worst first.
pub fn judge(reading: &Reading) -> Vec<Finding> {
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let mut findings = Vec::new();
    let succeeded = share(reading.calls.saturating_sub(reading.failed), reading.calls);
    if let Some(share) = succeeded.filter(|&share| share < SUCCESS) {
        findings.push(Finding {
            severity: Severity::High,
            fault: format!("{:.0}% of the calls succeeded", share * 100.0),
            recommendation: "reduce batch size or switch to CPU",
        });
    }
    if let Some(share) = share(reading.used_bytes, reading.total_bytes).filter(|&share| share > MEMORY) {
        findings.push(Finding {
            severity: Severity::Medium,
            fault: format!("{:.0}% of the memory is in use", share * 100.0),
            recommendation: "reduce batch size or clear the GPU cache",
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_works_is_well() {
        assert_eq!(judge(&Reading::default()), []);
        assert_eq!(judge(&Reading { calls: 10, failed: 2, used_bytes: 90, total_bytes: 100 }), []);
    }

    #[test]
    fn failures_are_worse_than_full_memory() {
        let findings = judge(&Reading { calls: 100, failed: 21, used_bytes: 91, total_bytes: 100 });
        let found: Vec<_> =
            findings.iter().map(|f| (f.severity, f.fault.as_str(), f.recommendation)).collect();
        assert_eq!(
            found,
            [
                (Severity::High, "79% of the calls succeeded", "reduce batch size or switch to CPU"),
                (Severity::Medium, "91% of the memory is in use", "reduce batch size or clear the GPU cache"),
            ]
        );
    }
}
