use crate::{Fault, Options, SCHEMA, misbehave};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Health, Host,
    Result, Role,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Embeds a text as the frequencies of its characters.
pub(crate) struct Letters {
    fault: Fault,
    info: EmbedderInfo,
    calls: AtomicU64,
    running: AtomicU64,
}

impl CreateEmbedder for Letters {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(options: Options, _: &'static dyn Host) -> Result<Self> {
        let fault = options.check()?;
        let model = if fault == Fault::SaysNothing { "" } else { "letters" }.to_owned();
        let info = EmbedderInfo { dim: 64, max_tokens: 500, max_batch: 9, model, space: [1; 32] };
        Ok(Self { fault, info, calls: AtomicU64::new(0), running: AtomicU64::new(0) })
    }
}

impl Letters {
    fn fill(&self, text: &str, batch: usize, row: &mut [f32]) {
        let fault = self.fault;
        assert!(fault != Fault::PanicsOnEmpty || !text.is_empty(), "an empty text");
        assert!(fault != Fault::HatesChance || text.chars().count() != 23, "asked to panic at 23");
        let dim = self.info.dim;
        let mut counts = vec![0.0_f32; dim];
        let text = if fault == Fault::OneVector { "one" } else { text };
        for c in text.chars().take(self.info.max_tokens) {
            counts[c as usize % dim] += 1.0;
        }
        match fault {
            Fault::SeesNeighbours => counts[0] += batch as f32,
            Fault::Wavers => counts[1] += self.calls.fetch_add(1, Ordering::Relaxed) as f32,
            _ => {}
        }
        let length = counts.iter().map(|v| v * v).sum::<f32>().sqrt();
        let scale = if length == 0.0 || fault == Fault::NotNormalised { 1.0 } else { length };
        let written = dim - usize::from(fault == Fault::LeavesLastNumber);
        for (out, count) in row[..written].iter_mut().zip(counts) {
            *out = count / scale;
        }
    }
}

impl Embedder for Letters {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }
    fn device(&self) -> DeviceReport {
        let device = if self.fault == Fault::NamesNoDevice { "" } else { "cpu" }.to_owned();
        let [engine, precision] = ["portable", "f32"].map(str::to_owned);
        DeviceReport { device, engine, precision, fallback_reason: String::new() }
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        if texts.len() != out.len() && self.fault != Fault::CountsAnyLength {
            return Err(Error::invalid_input("counts"));
        }
        for (out, text) in out.iter_mut().zip(texts) {
            *out = text.chars().take(self.info.max_tokens).count() as u32;
            *out += u32::from(self.fault == Fault::CountsOneMore);
        }
        Ok(())
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        if self.fault == Fault::JudgesPairs {
            return Err(Error::new(ErrorCode::UNSUPPORTED, "it judges pairs"));
        }
        if self.fault != Fault::IgnoresCancel {
            cx.check()?;
        }
        misbehave(self.fault);
        if !matches!(self.fault, Fault::TakesAnyLength | Fault::TakesTooMany) {
            self.info.check_call(texts, out)?;
        } else if self.fault == Fault::TakesTooMany && out.len() != texts.len() * self.info.dim {
            return Err(Error::invalid_input("out"));
        }
        if self.fault == Fault::RefusesQueries && role == Role::Query {
            return Err(Error::new(ErrorCode::UNSUPPORTED, "queries"));
        }
        if self.fault == Fault::RefusesEmptyCalls && texts.is_empty() {
            return Err(Error::invalid_input("nothing to do"));
        }
        if self.fault == Fault::FailsWhenBusy {
            let others = self.running.fetch_add(1, Ordering::AcqRel);
            // Long enough that the calls of other threads meet it.
            std::thread::sleep(Duration::from_millis(20));
            self.running.fetch_sub(1, Ordering::AcqRel);
            if others > 0 {
                return Err(Error::new(ErrorCode::UNAVAILABLE, "busy"));
            }
        }
        for (row, text) in out.chunks_exact_mut(self.info.dim).zip(texts) {
            self.fill(text, texts.len(), row);
        }
        Ok(())
    }
    fn rerank(&self, cx: &dyn CallContext, query: &str, passages: &[&str], scores: &mut [f32]) -> Result<()> {
        match self.fault {
            Fault::JudgesPairs
            | Fault::ScoresNeighbours
            | Fault::ScoresAnyLength
            | Fault::RanksWhenCancelled => {}
            _ => return Err(Error::new(ErrorCode::UNSUPPORTED, "it makes vectors")),
        }
        if self.fault != Fault::RanksWhenCancelled {
            cx.check()?;
        }
        if self.fault != Fault::ScoresAnyLength && passages.len() != scores.len() {
            return Err(Error::invalid_input("scores"));
        }
        let others = if self.fault == Fault::ScoresNeighbours { passages.len() } else { 1 };
        for (score, passage) in scores.iter_mut().zip(passages) {
            let shared = query.split_whitespace().filter(|word| passage.contains(word)).count();
            *score = shared as f32 / (10 * others) as f32;
        }
        Ok(())
    }
    fn warm_up(&self, _: &dyn CallContext) -> Result<()> {
        crate::warm_up(self.fault)
    }
    fn health(&self) -> Health {
        crate::health(self.fault)
    }
    fn tune(&self, name: &str, value: &str) -> Result<()> {
        crate::tune(self.fault, name, value)
    }
    fn describe(&self) -> String {
        crate::describe(self.fault)
    }
}
