//! The forward pass of every family, written once over the op trait.
//!
//! Prefill and decode differ in the batch alone. Each half-layer norms the residual stream `x` on
//! its way into the first product and adds to it in the last.

use kernels::ops::{
    Attention as Attend, Embed, Gather, HeadNorm, Linear, NormGated, NormLinear, OpError, Ops,
    RmsNorm, RopeWrite,
};

/// Gains of the norms of single heads.
pub struct HeadGains<O: Ops> {
    /// Of queries, `[head_dim]`.
    pub q: O::Vector,
    /// Of keys, `[head_dim]`.
    pub k: O::Vector,
}

/// Attention's weights.
pub struct Attention<O: Ops> {
    /// Queries, keys and values: `[(heads + 2 * kv_heads) * head_dim][hidden]`.
    pub qkv: O::Matrix,
    /// Their biases.
    pub qkv_bias: Option<O::Vector>,
    /// Norms of query and key heads.
    pub head_norm: Option<HeadGains<O>>,
    /// `[hidden][heads * head_dim]`.
    pub out: O::Matrix,
}

/// The gated MLP's weights.
pub struct Mlp<O: Ops> {
    /// Gate, then up: `[2 * intermediate][hidden]`.
    pub gate_up: O::Matrix,
    /// `[hidden][intermediate]`.
    pub down: O::Matrix,
}

/// One decoder layer.
pub struct Layer<O: Ops> {
    /// Gain of the norm before attention.
    pub attention_norm: O::Vector,
    /// Attention.
    pub attention: Attention<O>,
    /// Gain of the norm before the MLP.
    pub mlp_norm: O::Vector,
    /// The MLP.
    pub mlp: Mlp<O>,
}

/// Sizes that the pass needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Added to mean squares.
    pub eps: f32,
}

/// A model on a device.
pub struct Model<O: Ops> {
    /// Sizes.
    pub sizes: Sizes,
    /// `[vocab][hidden]`.
    pub embedding: O::Matrix,
    /// In order.
    pub layers: Vec<Layer<O>>,
    /// Gain of the last norm.
    pub norm: O::Vector,
    /// `[vocab][hidden]`; absent when it is the embedding.
    pub head: Option<O::Matrix>,
    /// Cosines and sines, `[position][head_dim]`.
    pub rope: O::Vector,
}

/// Activations of a step, kept from step to step and grown when a step is larger.
pub struct Scratch<O: Ops> {
    tokens: usize,
    sampled: usize,
    x: O::Tensor,
    normed: O::Tensor,
    qkv: O::Tensor,
    attended: O::Tensor,
    gate_up: O::Tensor,
    gated: O::Tensor,
    last_x: O::Tensor,
    last_normed: O::Tensor,
    /// `[sampled][vocab]`.
    pub logits: O::Tensor,
}

impl<O: Ops> Scratch<O> {
    /// Room for `tokens` tokens of which `sampled` want logits.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    pub fn new(ops: &O, s: &Sizes, tokens: usize, sampled: usize) -> Result<Self, OpError> {
        let q = s.heads * s.head_dim;
        let token = |width| ops.tensor(tokens, width);
        let last = |width| ops.tensor(sampled, width);
        Ok(Self {
            tokens,
            sampled,
            x: token(s.hidden)?,
            normed: token(s.hidden)?,
            qkv: token(q + 2 * s.kv_heads * s.head_dim)?,
            attended: token(q)?,
            gate_up: token(2 * s.intermediate)?,
            gated: token(s.intermediate)?,
            last_x: last(s.hidden)?,
            last_normed: last(s.hidden)?,
            logits: ops.logits(sampled, s.vocab)?,
        })
    }

    /// Where [`Model::states`] puts them, `[sampled][hidden]`.
    pub fn states(&self) -> &O::Tensor {
        &self.last_normed
    }

    /// Makes room for a larger step.
    ///
    /// # Errors
    /// [`OpError::Memory`].
    pub fn fit(&mut self, ops: &O, s: &Sizes, step: Step) -> Result<(), OpError> {
        if step.tokens > self.tokens || step.sampled > self.sampled {
            *self =
                Self::new(ops, s, step.tokens.max(self.tokens), step.sampled.max(self.sampled))?;
        }
        Ok(())
    }
}

/// One pass: a batch over the pages.
pub struct Pass<'a, O: Ops> {
    /// The batch.
    pub batch: &'a O::Batch,
    /// Its size.
    pub step: Step,
    /// The cache.
    pub pages: &'a O::Pages,
}

/// How large a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// New tokens.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub sampled: usize,
}

/// The same product in every layer.
pub struct LayerProduct<'a, O: Ops> {
    /// What is multiplied.
    pub x: &'a O::Tensor,
    /// A layer's weights each.
    pub weights: Vec<&'a O::Matrix>,
    /// Whether `out` is added to.
    pub add: bool,
    /// Where it goes.
    pub out: &'a mut O::Tensor,
}

impl<O: Ops> Model<O> {
    /// Hands every product of a pass to `each`, that of all layers at once, as the pass runs it
    /// where nothing is fused: for who wants to find out how it is best done.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn products<E>(
        &self,
        s: &mut Scratch<O>,
        mut each: impl FnMut(LayerProduct<'_, O>) -> Result<(), E>,
    ) -> Result<(), E> {
        let of = |weight: fn(&Layer<O>) -> &O::Matrix| self.layers.iter().map(weight).collect();
        let weights = of(|layer| &layer.attention.qkv);
        each(LayerProduct { x: &s.normed, weights, add: false, out: &mut s.qkv })?;
        let weights = of(|layer| &layer.attention.out);
        each(LayerProduct { x: &s.attended, weights, add: true, out: &mut s.x })?;
        let weights = of(|layer| &layer.mlp.gate_up);
        each(LayerProduct { x: &s.normed, weights, add: false, out: &mut s.gate_up })?;
        let weights = of(|layer| &layer.mlp.down);
        each(LayerProduct { x: &s.gated, weights, add: true, out: &mut s.x })?;
        let weights = vec![self.head.as_ref().unwrap_or(&self.embedding)];
        each(LayerProduct { x: &s.last_normed, weights, add: false, out: &mut s.logits })
    }

    /// Every matrix that a step of one token reads, once each.
    pub fn matrices(&self) -> impl Iterator<Item = &O::Matrix> {
        let layers = self.layers.iter().flat_map(|layer| {
            let (attention, mlp) = (&layer.attention, &layer.mlp);
            [&attention.qkv, &attention.out, &mlp.gate_up, &mlp.down]
        });
        layers.chain([self.head.as_ref().unwrap_or(&self.embedding)])
    }

    /// Computes a step: keys and values of the new tokens go to `pages`, logits of the sampled ones
    /// to `scratch.logits`. `written` is told of each layer whose keys and values are enqueued.
    ///
    /// # Errors
    /// [`OpError`] from the device.
    pub fn forward(
        &self,
        ops: &O,
        pass: &Pass<'_, O>,
        scratch: &mut Scratch<O>,
        mut written: impl FnMut(usize) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        let &Pass { batch, step, .. } = pass;
        scratch.fit(ops, &self.sizes, step)?;
        let s = scratch;
        ops.embed(Embed { table: &self.embedding, batch, out: &mut s.x })?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.attend(ops, (index, layer), pass, s)?;
            written(index)?;
            self.mlp(ops, layer, step.tokens, s)?;
        }
        self.logits(ops, batch, step, s)
    }

    /// `x += attention(norm(x))`, through the pages.
    fn attend(
        &self,
        ops: &O,
        (index, layer): (usize, &Layer<O>),
        &Pass { batch, step, pages }: &Pass<'_, O>,
        s: &mut Scratch<O>,
    ) -> Result<(), OpError> {
        let (Sizes { heads, head_dim, eps, .. }, rows) = (self.sizes, step.tokens);
        let (gain, weights) = (&layer.attention_norm, &layer.attention);
        let (x, normed, out) = (&s.x, &mut s.normed, &mut s.qkv);
        let (weight, bias) = (&weights.qkv, weights.qkv_bias.as_ref());
        ops.norm_linear(NormLinear { rows, x, gain, eps, normed, weight, bias, out })?;
        let norm = weights.head_norm.as_ref().map(|g| HeadNorm { q: &g.q, k: &g.k, eps });
        let (qkv, rope, layer) = (&mut s.qkv, &self.rope, index);
        ops.rope_write(RopeWrite { qkv, heads, norm, rope, batch, layer, pages })?;
        let (qkv, scale, out) = (&s.qkv, 1.0 / (head_dim as f32).sqrt(), &mut s.attended);
        ops.attention(Attend { qkv, heads, scale, batch, layer, pages, out })?;
        let (x, weight, out) = (&s.attended, &weights.out, &mut s.x);
        ops.linear(Linear { rows, x, weight, bias: None, add: true, out })
    }

    /// `x += mlp(norm(x))`.
    fn mlp(
        &self,
        ops: &O,
        layer: &Layer<O>,
        rows: usize,
        s: &mut Scratch<O>,
    ) -> Result<(), OpError> {
        let (gain, weights, eps) = (&layer.mlp_norm, &layer.mlp, self.sizes.eps);
        let (x, normed, weight) = (&s.x, &mut s.normed, &weights.gate_up);
        let (gate_up, out) = (&mut s.gate_up, &mut s.gated);
        ops.norm_gated(NormGated { rows, x, gain, eps, normed, weight, gate_up, out })?;
        let (x, weight, out) = (&s.gated, &weights.down, &mut s.x);
        ops.linear(Linear { rows, x, weight, bias: None, add: true, out })
    }

    /// Logits of the sampled tokens alone.
    fn logits(
        &self,
        ops: &O,
        batch: &O::Batch,
        step: Step,
        s: &mut Scratch<O>,
    ) -> Result<(), OpError> {
        let rows = step.sampled;
        if rows == 0 {
            return Ok(());
        }
        // They are in the order of the tokens, so where all are sampled nothing is to be gathered.
        if step.tokens != rows {
            return self.logits_of(ops, (batch, rows), s);
        }
        self.head(ops, (&s.x, rows), &mut s.last_normed, &mut s.logits)
    }

    /// Logits of the `rows` tokens that `batch` gathers, of a pass that is done.
    ///
    /// # Errors
    /// [`OpError`] from the device.
    pub fn logits_of(
        &self,
        ops: &O,
        (batch, rows): (&O::Batch, usize),
        s: &mut Scratch<O>,
    ) -> Result<(), OpError> {
        ops.gather(Gather { x: &s.x, batch, out: &mut s.last_x })?;
        self.head(ops, (&s.last_x, rows), &mut s.last_normed, &mut s.logits)
    }

    /// `out = head(norm(x))` of `rows` rows.
    fn head(
        &self,
        ops: &O,
        (x, rows): (&O::Tensor, usize),
        normed: &mut O::Tensor,
        out: &mut O::Tensor,
    ) -> Result<(), OpError> {
        let (gain, eps) = (&self.norm, self.sizes.eps);
        let weight = self.head.as_ref().unwrap_or(&self.embedding);
        ops.norm_linear(NormLinear { rows, x, gain, eps, normed, weight, bias: None, out })
    }

    /// Hidden states, behind the last norm, of the `rows` tokens that `batch` gathers, of a pass
    /// that is done.
    ///
    /// # Errors
    /// [`OpError`] from the device.
    pub fn states(
        &self,
        ops: &O,
        (batch, rows): (&O::Batch, usize),
        s: &mut Scratch<O>,
    ) -> Result<(), OpError> {
        ops.gather(Gather { x: &s.x, batch, out: &mut s.last_x })?;
        let (gain, eps) = (&self.norm, self.sizes.eps);
        ops.rms_norm(RmsNorm { rows, x: &s.last_x, gain, eps, out: &mut s.last_normed })
    }
}
