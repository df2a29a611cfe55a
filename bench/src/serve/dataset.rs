//! What a workload asks: prompts of token ids and lengths of answers, by the names and options of
//! vLLM's and SGLang's serving benchmarks where they have one.

use crate::numbers::Random;
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use plan::trace::{self, Entry};
use std::path::PathBuf;
use std::time::Duration;

/// Ids below this are special in many vocabularies.
const FIRST_ID: u32 = 100;
/// Tokens of a block of Mooncake's traces.
const MOONCAKE_BLOCK: usize = 512;

/// Which requests.
#[derive(Args, Clone, Debug)]
pub struct DatasetOptions {
    /// Instead of the experiments: a workload of these requests.
    #[arg(long, value_enum)]
    pub dataset_name: Option<DatasetName>,
    /// The trace, or lengths of ShareGPT in place of the built-in ones.
    #[arg(long, visible_alias = "trace", value_name = "FILE", requires = "dataset_name")]
    dataset_path: Option<PathBuf>,
    /// How many requests; of a trace, its first ones.
    #[arg(long, default_value_t = 1000)]
    num_prompts: usize,
    /// random: tokens of a prompt.
    #[arg(long, default_value_t = 1024)]
    random_input_len: usize,
    /// random: tokens of an answer.
    #[arg(long, default_value_t = 128)]
    random_output_len: usize,
    /// random: lengths are drawn from LEN * (1 - R) to LEN * (1 + R), R below 1.
    #[arg(long, default_value_t = 0.0)]
    random_range_ratio: f64,
    /// random: tokens before each prompt that all have in common.
    #[arg(long, default_value_t = 0)]
    random_prefix_len: usize,
    /// shared-prefix: how many system prompts there are.
    #[arg(long, default_value_t = 64)]
    gsp_num_groups: usize,
    /// shared-prefix: tokens of a system prompt.
    #[arg(long, default_value_t = 2048)]
    gsp_system_prompt_len: usize,
    /// shared-prefix: tokens of a question after it.
    #[arg(long, default_value_t = 128)]
    gsp_question_len: usize,
    /// shared-prefix: tokens of an answer.
    #[arg(long, default_value_t = 256)]
    gsp_output_len: usize,
    /// trace: its lengths and blocks are divided by this, for a model of less context.
    #[arg(long, default_value_t = 1)]
    length_divisor: usize,
    /// trace: its times are multiplied by this, for a machine that is slower.
    #[arg(long, default_value_t = 1.0)]
    slowdown_factor: f64,
    /// Requests of more tokens, prompt and answer together, are left out.
    #[arg(long)]
    max_model_len: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Random lengths.
    Random,
    /// Groups of requests with a system prompt in common.
    #[value(alias = "generated-shared-prefix")]
    SharedPrefix,
    /// Lengths of ShareGPT's first turns.
    Sharegpt,
    /// A trace: Mooncake's with its prefixes, Azure's or ServeGen's with their lengths.
    #[value(alias = "mooncake", alias = "azure", alias = "servegen")]
    Trace,
}

/// One request before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// From the first one's, if the data say when.
    pub at: Option<Duration>,
    pub prompt: Vec<u32>,
    pub output: usize,
}

impl DatasetOptions {
    /// The requests in order, with ids below `vocab`, and how many were left out as too long.
    ///
    /// # Errors
    /// An option or a file does not fit.
    pub fn plan(&self, vocab: u32, seed: u64) -> anyhow::Result<(Vec<Planned>, usize)> {
        ensure!(vocab > FIRST_ID, "--vocab {vocab}: want more than {FIRST_ID}");
        let ids = Ids { random: Random::new(seed), seed, vocab };
        let mut planned = match self.dataset_name.context("--dataset-name")? {
            DatasetName::Random => self.random(ids)?,
            DatasetName::SharedPrefix => self.shared_prefix(ids)?,
            DatasetName::Sharegpt => self.sharegpt(ids)?,
            DatasetName::Trace => self.trace(&ids)?,
        };
        let all = planned.len();
        let most = self.max_model_len.unwrap_or(usize::MAX);
        planned.retain(|one| one.prompt.len() + one.output <= most);
        let left_out = all - planned.len();
        ensure!(!planned.is_empty(), "no request is left of {all}");
        Ok((planned, left_out))
    }

    fn random(&self, mut ids: Ids) -> anyhow::Result<Vec<Planned>> {
        let ratio = self.random_range_ratio;
        ensure!((0.0..1.0).contains(&ratio), "--random-range-ratio {ratio}: want 0 to below 1");
        let prefix = ids.some(self.random_prefix_len);
        let one = |_| {
            let input = ids.length(self.random_input_len, ratio);
            let output = ids.length(self.random_output_len, ratio);
            let prompt = [&prefix[..], &ids.some(input)].concat();
            Planned { at: None, prompt, output }
        };
        Ok((0..self.num_prompts).map(one).collect())
    }

    /// Groups take turns in a random order.
    fn shared_prefix(&self, mut ids: Ids) -> anyhow::Result<Vec<Planned>> {
        ensure!(self.gsp_num_groups > 0, "--gsp-num-groups 0: want at least 1");
        let systems: Vec<_> =
            (0..self.gsp_num_groups).map(|_| ids.some(self.gsp_system_prompt_len)).collect();
        let one = |_| {
            let system = &systems[ids.random.below(systems.len())];
            let prompt = [&system[..], &ids.some(self.gsp_question_len)].concat();
            Planned { at: None, prompt, output: self.gsp_output_len }
        };
        Ok((0..self.num_prompts).map(one).collect())
    }

    fn sharegpt(&self, mut ids: Ids) -> anyhow::Result<Vec<Planned>> {
        let read = self.dataset_path.as_deref().map(trace::first_turns).transpose()?;
        let lengths = read.unwrap_or_else(|| SHAREGPT.to_vec());
        let one = |_| {
            let (input, output) = lengths[ids.random.below(lengths.len())];
            Planned { at: None, prompt: ids.some(input), output }
        };
        Ok((0..self.num_prompts).map(one).collect())
    }

    fn trace(&self, ids: &Ids) -> anyhow::Result<Vec<Planned>> {
        let (divisor, slowdown) = (self.length_divisor, self.slowdown_factor);
        let fits = (1..=MOONCAKE_BLOCK).contains(&divisor);
        ensure!(fits, "--length-divisor {divisor}: want 1 to {MOONCAKE_BLOCK}");
        ensure!(slowdown > 0.0, "--slowdown-factor {slowdown}: want above 0");
        let path = self.dataset_path.as_deref().context("a trace is named by --dataset-path")?;
        let entries = trace::read(path)?.into_iter().take(self.num_prompts);
        let block = MOONCAKE_BLOCK / divisor;
        let one = |(number, entry): (usize, Entry)| {
            let input = (entry.input / divisor).max(1);
            Planned {
                at: Some(entry.at.mul_f64(slowdown)),
                prompt: ids.of_blocks(&entry.blocks, block, input, number),
                output: (entry.output / divisor).max(1),
            }
        };
        Ok(entries.enumerate().map(one).collect())
    }
}

/// Where token ids come from.
struct Ids {
    random: Random,
    seed: u64,
    vocab: u32,
}

impl Ids {
    fn some(&mut self, count: usize) -> Vec<u32> {
        self.random.ids(count, FIRST_ID, self.vocab - FIRST_ID)
    }

    /// A length around this one, at least 1.
    fn length(&mut self, around: usize, ratio: f64) -> usize {
        let spread = (around as f64 * ratio) as usize;
        (around - spread + self.random.below(2 * spread + 1)).max(1)
    }

    /// A prompt whose blocks have the tokens of their names; what no block names is its own.
    fn of_blocks(&self, blocks: &[u64], block: usize, length: usize, number: usize) -> Vec<u32> {
        let span = self.vocab - FIRST_ID;
        let named =
            |name: u64, count| Random::new(self.seed.wrapping_add(name)).ids(count, FIRST_ID, span);
        let mut prompt: Vec<u32> =
            blocks.iter().flat_map(|&name| named(name, block)).take(length).collect();
        let missing = length - prompt.len();
        prompt.extend(named(u64::MAX / 2 + number as u64, missing));
        prompt
    }
}

/// Tokens of a prompt and of its answer: every 36th of the 4,609 first turns of ShareGPT that fit
/// (see [`trace::first_turns`]), ordered, as a tokenizer of 49,152 ids counts them. Means: 84 and
/// 310, of all: 84 and 297.
#[rustfmt::skip]
const SHAREGPT: [(usize, usize); 128] = [
    (4, 42), (4, 602), (5, 173), (5, 397), (6, 79), (6, 181), (6, 306), (7, 44), (7, 181), (7,
    302), (8, 17), (8, 107), (8, 218), (8, 327), (9, 22), (9, 169), (9, 261), (9, 395), (10,
    73), (10, 155), (10, 297), (10, 492), (11, 95), (11, 241), (11, 331), (11, 805), (12, 171),
    (12, 293), (12, 452), (13, 90), (13, 180), (13, 277), (13, 383), (14, 13), (14, 153), (14,
    276), (14, 428), (15, 57), (15, 212), (15, 354), (15, 957), (16, 205), (16, 378), (16, 745),
    (17, 114), (17, 297), (17, 491), (18, 105), (18, 361), (19, 77), (19, 280), (19, 595), (20,
    179), (20, 328), (21, 53), (21, 303), (22, 144), (22, 351), (23, 27), (23, 273), (24, 14),
    (24, 294), (25, 97), (25, 532), (26, 298), (27, 150), (27, 710), (28, 377), (29, 315), (30,
    270), (31, 167), (32, 303), (33, 280), (34, 290), (35, 168), (36, 51), (37, 141), (38, 193),
    (39, 301), (40, 334), (41, 455), (43, 159), (44, 779), (46, 258), (48, 276), (50, 187), (52,
    145), (54, 494), (57, 280), (59, 710), (62, 187), (64, 488), (67, 563), (70, 165), (73,
    321), (76, 771), (79, 409), (82, 337), (86, 354), (90, 510), (95, 13), (99, 362), (103,
    213), (107, 457), (114, 672), (120, 321), (127, 29), (133, 778), (141, 509), (149, 497),
    (158, 376), (169, 146), (182, 139), (195, 270), (209, 174), (228, 182), (251, 717), (278,
    379), (308, 234), (335, 513), (362, 620), (395, 319), (432, 31), (484, 831), (558, 180),
    (638, 724), (777, 139), (945, 793),
];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn plan(words: &str) -> anyhow::Result<(Vec<Planned>, usize)> {
        let command = DatasetOptions::augment_args(Command::new("serve"));
        let words = std::iter::once("serve").chain(words.split_whitespace());
        let options = DatasetOptions::from_arg_matches(&command.try_get_matches_from(words)?)?;
        options.plan(1000, 7)
    }

    #[test]
    fn random_lengths_lie_around_theirs_after_what_all_share() {
        let words = "--dataset-name random --num-prompts 50 --random-input-len 100 \
                     --random-output-len 10 --random-range-ratio 0.2 --random-prefix-len 16";
        let (planned, left_out) = plan(words).unwrap();
        assert_eq!((planned.len(), left_out), (50, 0));
        for one in &planned {
            assert!((96..=136).contains(&one.prompt.len()) && (8..=12).contains(&one.output));
            assert_eq!(one.prompt[..16], planned[0].prompt[..16]);
            assert!(one.prompt.iter().all(|id| (100..1000).contains(id)));
        }
        assert_eq!(plan(words).unwrap().0, planned);
        assert!(plan("--dataset-name random --random-range-ratio 1").is_err());
    }

    #[test]
    fn groups_share_their_system_prompt_and_nothing_else() {
        let words = "--dataset-name shared-prefix --num-prompts 40 --gsp-num-groups 3 \
                     --gsp-system-prompt-len 32 --gsp-question-len 8 --gsp-output-len 4";
        let (planned, _) = plan(words).unwrap();
        let systems: std::collections::HashSet<_> =
            planned.iter().map(|one| one.prompt[..32].to_vec()).collect();
        assert_eq!(systems.len(), 3);
        assert!(planned.iter().all(|one| one.prompt.len() == 40 && one.output == 4));
    }

    #[test]
    fn a_trace_keeps_its_times_and_its_prefixes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.jsonl");
        let lines = [(0, 1024, 160, "0, 1"), (500, 1100, 320, "0, 2, 3"), (900, 90_000, 16, "4")];
        let line = |(at, input, output, ids): &(u32, u32, u32, &str)| {
            format!(
                "{{\"timestamp\": {at}, \"input_length\": {input}, \
                 \"output_length\": {output}, \"hash_ids\": [{ids}]}}\n"
            )
        };
        std::fs::write(&path, lines.iter().map(line).collect::<String>()).unwrap();
        let words = format!(
            "--dataset-name mooncake --trace {} --length-divisor 16 --slowdown-factor 2 \
             --max-model-len 1000",
            path.display()
        );
        let (planned, left_out) = plan(&words).unwrap();
        assert_eq!((planned.len(), left_out), (2, 1));
        let [first, second] = &planned[..] else { panic!("two fit") };
        assert_eq!((first.prompt.len(), first.output), (64, 10));
        assert_eq!((second.prompt.len(), second.output), (68, 20));
        assert_eq!(second.at, Some(Duration::from_secs(1)));
        assert_eq!(first.prompt[..32], second.prompt[..32]);
        assert_ne!(first.prompt[32..64], second.prompt[32..64]);
        assert!(plan("--dataset-name trace").is_err());
    }

    #[test]
    fn the_table_has_the_lengths_that_its_words_say() {
        let mean = |of: fn(&(usize, usize)) -> usize| SHAREGPT.iter().map(of).sum::<usize>() / 128;
        assert_eq!((mean(|pair| pair.0), mean(|pair| pair.1)), (83, 309));
        let (planned, _) = plan("--dataset-name sharegpt --num-prompts 5").unwrap();
        assert!(planned.iter().all(|one| SHAREGPT.contains(&(one.prompt.len(), one.output))));
    }
}
