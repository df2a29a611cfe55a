//! `tandem plan`: which ring a trace needs, by simulation. The work is in the crate `plan`; here
//! are the options and what is printed.

use ::plan::load;
use ::plan::numbers::short;
use ::plan::plot::Plot;
use ::plan::search::{Answer, Question};
use ::plan::table::StepTable;
use ::plan::trace;
use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Servers at which ratios and policies are compared, unless fewer are allowed.
const COMPARED_AT: usize = 8;

/// Say which ratio of prefill to decode servers, page pool and policies serve a trace within
/// targets at least cost, and how goodput grows with GPUs. Simulated: nothing is started.
#[derive(Args)]
pub struct PlanCommand {
    /// Mooncake's JSON lines, or CSV as Azure's or `ServeGen`'s.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Step times of an engine, as `tandem-bench steps` writes them.
    #[arg(long, value_name = "FILE")]
    table: PathBuf,
    /// A request's first token must come within this.
    #[arg(long, value_name = "MS")]
    ttft_ms: f64,
    /// A request's mean time between tokens must be at most this.
    #[arg(long, value_name = "MS")]
    itl_ms: f64,
    /// Sizes of the ring, fewest to most.
    #[arg(long, value_name = "LEAST..MOST", default_value = "2..2000", value_parser = range)]
    gpus: (usize, usize),
    /// Requests a second to find the smallest ring for [the trace's own].
    #[arg(long)]
    rate: Option<f64>,
    /// Share of requests that must meet both targets.
    #[arg(long, default_value_t = 0.99)]
    attainment: f64,
    /// Lengths of the trace are divided by this, for a model of less context.
    #[arg(long, default_value_t = 1)]
    length_divisor: u32,
    /// Seconds of load that each rate is judged by [what batches and queues need to be steady].
    #[arg(long)]
    window: Option<f64>,
    /// Folder for `plan.json` and plots.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn range(text: &str) -> Result<(usize, usize), String> {
    let wanted = || format!("{text:?}: want LEAST..MOST, 2 at least, like 2..2000");
    let (least, most) = text.split_once("..").ok_or_else(wanted)?;
    let (least, most) = (least.parse().map_err(|_| wanted())?, most.parse().map_err(|_| wanted())?);
    if least < 2 || most < least { Err(wanted()) } else { Ok((least, most)) }
}

/// All that was found.
struct Plan {
    ratios: Vec<Answer>,
    best: Answer,
    variants: Vec<Answer>,
    growth: Vec<Answer>,
    rate: f64,
    least: Option<Answer>,
}

impl PlanCommand {
    /// Simulates and prints.
    ///
    /// # Errors
    /// An option or a file does not fit, or no ring meets the targets.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut question = self.question()?;
        let plan = self.plan(&mut question)?;
        print!("{}", plan.text(&question, self.gpus));
        let Some(folder) = &self.out else { return Ok(()) };
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let about = json!({
            "trace": self.trace.file_name().map(|name| name.to_string_lossy()),
            "table": question.table.steps().about,
            "ttft_ms": self.ttft_ms,
            "itl_ms": self.itl_ms,
            "attainment": self.attainment,
            "length_divisor": self.length_divisor,
            "window_s": question.window,
        });
        save(folder, "plan.json", &(plan.json(&about).to_string() + "\n"))?;
        save(folder, "growth.svg", &plan.growth_plot())?;
        save(folder, "ratios.svg", &plan.ratio_plot())
    }

    fn question(&self) -> anyhow::Result<Question> {
        let Self { ttft_ms, itl_ms, attainment, window, length_divisor, .. } = *self;
        ensure!(ttft_ms > 0.0 && ttft_ms < 1e9, "--ttft-ms {ttft_ms}: want above 0");
        ensure!(itl_ms > 0.0 && itl_ms < 1e9, "--itl-ms {itl_ms}: want above 0");
        let part = attainment > 0.0 && attainment < 1.0;
        ensure!(part, "--attainment {attainment}: want above 0 and below 1");
        if let Some(window) = window {
            ensure!(window > 0.0 && window < 1e5, "--window {window}: want above 0 s");
        }
        let most = load::BLOCK_TOKENS;
        let fits = (1..=most).contains(&length_divisor);
        ensure!(fits, "--length-divisor {length_divisor}: want 1 to {most}");
        if let Some(rate) = self.rate {
            ensure!(rate > 0.0 && rate < 1e9, "--rate {rate}: want above 0");
        }
        Ok(Question {
            table: Arc::new(StepTable::read(&self.table)?),
            entries: trace::read(&self.trace)?,
            divisor: length_divisor,
            ttft: Duration::from_secs_f64(ttft_ms / 1e3),
            itl: Duration::from_secs_f64(itl_ms / 1e3),
            attainment,
            window,
        })
    }

    fn plan(&self, question: &mut Question) -> anyhow::Result<Plan> {
        let (least, most) = self.gpus;
        let ratios = question.ratios(COMPARED_AT.clamp(least.min(COMPARED_AT), most));
        let better = |a: &&Answer, b: &&Answer| a.goodput.total_cmp(&b.goodput);
        let best = ratios.iter().max_by(better).context("no ratio")?.clone();
        ensure!(
            best.goodput > 0.0,
            "no ring meets these targets at any rate: the table's steps alone take longer for more \
             than {} of 100 requests; raise --ttft-ms or --itl-ms, or lower --attainment",
            short((1.0 - self.attainment) * 100.0)
        );
        let rate = self.rate.unwrap_or_else(|| load::rate(&question.entries));
        let variants = question.variants(&best);
        question.learn(&best);
        let growth = question.growth(&best, &sizes(self.gpus));
        let enough = growth.iter().find(|answer| answer.goodput >= rate);
        let high = enough.map_or(most, |answer| answer.prefills + answer.decodes);
        let least = question.least(&best, rate, (least, high));
        Ok(Plan { ratios, best, variants, growth, rate, least })
    }
}

/// Four times as many each, from the least to the most.
fn sizes((least, most): (usize, usize)) -> Vec<usize> {
    let larger = std::iter::successors(Some(least), |size| size.checked_mul(4));
    larger.take_while(|size| *size < most).chain([most]).collect()
}

fn save(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

const HEADER: &str = "                               P:D   req/s  a GPU | TTFT p50    p99 | \
                      ITL p50   p99 | busy P    D | cached | window | pool of a decode GPU\n";

fn line(answer: &Answer) -> String {
    let Answer { what, prefills, decodes, goodput, ttft_ms, itl_ms, busy, .. } = answer;
    if *goodput <= 0.0 {
        return format!("{what:<26} {prefills:>4}:{decodes:<4} misses the targets at any rate\n");
    }
    format!(
        "{what:<26} {prefills:>4}:{decodes:<4} {:>6} {:>6} | {:>8} {:>6} | {:>7} {:>5} | \
         {:>5.0}% {:>4.0}% | {:>5.0}% | {:>4.0} s | {} tokens\n",
        short(*goodput),
        short(answer.each()),
        short(ttft_ms.0),
        short(ttft_ms.1),
        short(itl_ms.0),
        short(itl_ms.1),
        busy.0 * 100.0,
        busy.1 * 100.0,
        answer.cached * 100.0,
        answer.window,
        answer.pool_tokens,
    )
}

impl Plan {
    fn text(&self, question: &Question, (_, most): (usize, usize)) -> String {
        let lines = |answers: &[Answer]| answers.iter().map(line).collect::<String>();
        let targets = format!(
            "{} % of requests: first token within {} ms, then {} ms a token in the mean",
            short(question.attainment * 100.0),
            short(question.ttft.as_secs_f64() * 1e3),
            short(question.itl.as_secs_f64() * 1e3)
        );
        let Answer { prefills, decodes, .. } = self.best;
        let least = self.least.as_ref().map_or_else(
            || format!("no ring of up to {most} GPUs serves {} requests/s\n", short(self.rate)),
            line,
        );
        format!(
            "{}\n{targets}\n\n{HEADER}Ratios\n{}Policies and pools at {prefills}:{decodes}\n{}\
             Growth at that ratio\n{}Least cost\n{least}",
            question.table.steps().about,
            lines(&self.ratios),
            lines(&self.variants),
            lines(&self.growth)
        )
    }

    fn json(&self, about: &serde_json::Value) -> serde_json::Value {
        json!({
            "about": about,
            "ratios": self.ratios,
            "best": self.best,
            "variants": self.variants,
            "growth": self.growth,
            "rate": self.rate,
            "least": self.least,
        })
    }

    fn growth_plot(&self) -> String {
        let gpus = |answer: &Answer| (answer.prefills + answer.decodes) as f64;
        let each = self.growth.iter().map(|answer| (gpus(answer), answer.each()));
        let title = "Requests a second and GPU within the targets".to_owned();
        let lines = vec![("goodput a GPU", each.collect())];
        Plot { title, x: "GPUs", y: "req/s", log: true, lines }.svg()
    }

    fn ratio_plot(&self) -> String {
        let points = self.ratios.iter().map(|answer| (answer.prefills as f64, answer.goodput));
        let all = self.best.prefills + self.best.decodes;
        let title = format!("Requests a second within the targets, of {all} GPUs");
        let lines = vec![("goodput", points.collect())];
        Plot { title, x: "prefill servers", y: "req/s", log: false, lines }.svg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_up_to_the_most() {
        assert_eq!(sizes((2, 20)), [2, 8, 20]);
        assert_eq!(sizes((2, 2)), [2]);
        assert_eq!(range("2..9"), Ok((2, 9)));
        for wrong in ["9", "1..4", "5..3", "a..b"] {
            assert!(range(wrong).unwrap_err().contains("LEAST..MOST"), "{wrong}");
        }
    }
}
