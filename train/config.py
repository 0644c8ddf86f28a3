"""Configuration of the trainer: `[train]` of hustings.toml. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from feedback.config import ChatTemplateKwargs, Section
from train.reward.config import ReviewConfig, RewardConfig, ScheduleConfig

ALL_LINEAR = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("qkv_proj", "gate_up_proj"),  # joined, as Phi 3 and GLM have them
    *("c_fc", "c_proj"),  # StarCoder 2
)


class LoraSettings(Section):
    """`[train.lora]`: the adapters."""

    rank: int = Field(default=16, ge=1, le=256)
    """Rank r of the update B A."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / r."""
    targets: tuple[str, ...] = ALL_LINEAR
    """Names of the linear layers that get an adapter; those that a model lacks are passed over."""


class FullConfig(Section):
    """`[train.full]`: full fine-tuning, where `train.tuning` is "full"."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """AdamW's, of all weights, in PPO and in the warm start. A LoRA wants about ten times as much or more; the smaller
    the model, the more it bears."""


class SftConfig(Section):
    """`[train.sft]`: the warm start on people's own answers (votes with an edited answer), before PPO."""

    min_demonstrations: int | None = Field(default=32, ge=1)
    """Fewest edited answers in the snapshot that a warm start is made of; none for never. Fewer say too little about a
    policy that PPO is about to move anyway."""
    epochs: int = Field(default=3, ge=1)
    """Most passes over them; it ends sooner when held-out answers grow less likely."""
    minibatch: int = Field(default=8, ge=1)
    """Answers an optimiser step is made from; `train.ppo.micro_tokens` of them go through the model at once."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """AdamW's, of the policy's adapter (a whole policy: `train.full.learning_rate`)."""
    max_answer_tokens: int = Field(default=512, ge=2)
    """Longer answers are left out: cut off, they would teach not to end."""
    heldout: float = Field(default=0.15, ge=0.0, lt=0.9)
    """Share of the conversations with an edited answer that is held out to judge the warm start by: one part of 2, 3, 4
    and so on, whichever is nearest."""
    max_kl: float = Field(default=4.0, gt=0)
    """Most nats an answer between policy and base that the warm start may spend; what the governor allows beyond is
    PPO's."""


class PpoConfig(Section):
    """`[train.ppo]`: the policy's optimisation."""

    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    """`gae`: generalised advantage estimation over a critic, token by token. `rloo`: an answer's reward less the mean
    of the other answers to its prompt. `grpo`: its distance from the prompt's mean over their standard deviation. The
    last two build no critic and want `answers_per_prompt` of at least 2, better 4."""
    iterations: int = Field(default=6, ge=1)
    """Rounds of sample, score, update; the governor may end them sooner."""
    episodes: int = Field(default=64, ge=1)
    """Answers sampled in an iteration."""
    answers_per_prompt: int = Field(default=2, ge=1)
    """Answers to one prompt; they share its prefill, in the sampler and in every pass of the trainer."""
    minibatch: int = Field(default=8, ge=1)
    """Episodes an optimiser step is made from."""
    micro_tokens: int = Field(default=512, ge=64)
    """Tokens that go through the model at once in the update; a larger minibatch accumulates gradients."""
    pass_tokens: int = Field(default=2048, ge=64)
    """Tokens that go through the model at once in passes without a gradient."""
    epochs: int = Field(default=1, ge=1)
    """Times that an iteration's episodes are gone through."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, of the policy's adapter (a whole policy: `train.full.learning_rate`)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """PPO's epsilon."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Furthest that a value may profitably move in an update; None for no clipping."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount."""
    lam: float = Field(default=0.8, ge=0, le=1)
    """Lambda of generalised advantage estimation. Published runs take 0.95 with one reward at the end; with a reward a
    token credit is near, and a shorter look ahead has less noise (docs/log.md)."""
    kl_coefficient: float = Field(default=0.1, ge=0)
    """Price of a nat of KL to the base (beta)."""
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    """Estimator of the KL to the base; `exact` sums over the vocabulary (in the loss only): no sampling noise."""
    kl_in: Literal["reward", "loss"] = "loss"
    """Whether the KL is paid for in the reward or as a term of the loss (there k2 or k3: k1 has no mean gradient)."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats an answer that an adaptive coefficient steers for; None leaves the coefficient to the governor
    (`train.governor.breach_factor`)."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Episodes over which the adaptive coefficient may change by about a fifth."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    all_actions: bool = True
    """Take the part of a token's reward that is known of every candidate token (its own class and embedding, whether it
    takes up the prompt) by its mean over the vocabulary, not by the one token that was sampled: less noise, and words
    that were never sampled are weighed too. Without effect on a head that foresees nothing, with `credit = "end"`, with
    `grpo`, and with a `reward_clip`, `reward_scaling` or `missing_eos_score`."""
    whiten_advantages: bool = True
    """Whiten the advantages over an iteration's real tokens (not those of `grpo`, which are normalised already)."""
    reward_scaling: Literal["none", "batch", "running"] = "none"
    """Divide rewards by the standard deviation of the answers' scores: of this iteration's (`batch`) or of all so far
    (`running`). Nothing is shifted. The reward model's scores have deviation 1 on the voted answers already."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Bound on a token's reward, once scaled, before the KL is paid; None for none."""
    missing_eos_score: float | None = None
    """Score of an answer that was cut off, in place of the reward model's; None leaves it that."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken from the last token of an answer that was cut off. 0: answers are cut by the token budget, not by fault."""
    tis_cap: float = Field(default=2.0, ge=1)
    """Cap of the importance weights that correct for a sampler which disagrees with the trainer."""
    old_logprobs: Literal["sampler", "recompute"] = "sampler"
    """Where old log-probs and values come from: the local sampler's own record (saves a pass; exact to rounding), or a
    pass of the trainer. Remote rollouts are always recomputed."""
    critic: Literal["trunk", "lora"] = "trunk"
    """Value head on the policy's own detached hidden states, or with a LoRA adapter of its own (which begins as the
    reward model's, if `reward.head` is `last`)."""
    value_learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, of the critic."""
    value_coefficient: float = Field(default=1.0, gt=0)
    """Weight of the value loss (a trunk critic shares no weight with the policy: a mere scale there)."""
    critic_warmup: int = Field(default=1, ge=0)
    """Passes over the first iteration's answers for the critic, before the policy moves. A critic that begins at the
    reward model (`reward.head = "last"`, `critic = "lora"`) takes so many epochs of gradient steps; any other is fitted
    in closed form, cross-fitted, whatever the number. 0 for none."""
    critic_refit: bool = True
    """Fit the value head on the trunk anew on each iteration's answers, in closed form and cross-fitted."""
    max_approx_kl: float | None = Field(default=0.1, gt=0)
    """An iteration's updates stop when a minibatch's approximate KL to the sampling policy (nats a token) tops this."""
    gradient_checkpointing: bool = False
    """Keep only what enters each block and compute the rest again on the way back: same bits, less memory, one more
    forward pass an update; in the warm start and in the `last` head's training too."""

    @property
    def exact_kl(self) -> bool:
        """Whether the loss prices the KL over the whole vocabulary."""
        return self.kl_estimator == "exact" and self.kl_in == "loss"


LEAST_FINAL_ANSWERS = 16


class GovernorConfig(Section):
    """`[train.governor]`: when optimisation has gone too far. Of the policies within all bounds the best by fresh
    answers is published."""

    enabled: bool = True
    """False trains through all iterations, with no bound and no price but the KL's, and publishes that of the highest
    score less that price."""
    min_distinct_ratio: float = Field(default=0.8, ge=0)
    """Least share of distinct bigrams, as a fraction of the base's own answers'."""
    max_perplexity_ratio: float = Field(default=1.5, gt=0)
    """Highest perplexity of the answers under the base, as a multiple of that of the base's own answers."""
    max_kl: float = Field(default=9.0, gt=0)
    """Most nats an answer between policy and base."""
    min_topic_ratio: float = Field(default=0.8, ge=0)
    """Least share of a prompt's own wording that answers take up, as a fraction of the base's own answers', while PPO
    runs; the finals (`final_answers`) ask for the base's own. 0 for no such bound, there neither."""
    topic_price: float = Field(default=0.5, ge=0)
    """Least reward for taking up all of a prompt's wording, in standard deviations of the score. While answers take up
    less than aimed at the price rises, then it falls again (a Lagrange multiplier); it never rises above 3."""
    topic_rate: float = Field(default=6.0, ge=0)
    """By how much an iteration changes that price, a unit of shortfall; 0 keeps it fixed."""
    topic_aim: float = Field(default=1.1, ge=0)
    """The share of a prompt's wording aimed at, as a fraction of the base's own; above 1 because it is measured on few
    answers."""
    perplexity_aim: float = Field(default=1.15, gt=0)
    """Perplexity ratio above which the KL's reference is sharpened, which makes unlikely words dearer."""
    fluency_rate: float = Field(default=1.0, ge=0)
    """How far it is sharpened, a nat of perplexity beyond the aim; 0 for never, as it is where the KL isn't that of the
    whole vocabulary in the loss (`train.ppo.kl_estimator`, `kl_in`): a broken bound of perplexity then makes the KL
    dearer (`breach_factor`)."""
    breach_factor: float = Field(default=1.5, ge=1)
    """The KL grows dearer by this factor whenever its bound or one of repetition is broken; of a step that broke any, a
    part is taken back. While the policy is foreseen to stay far within the bound of KL (and `train.ppo.kl_target` is
    not set) it grows cheaper, by this factor at most an iteration: distance that is allowed gets spent. 1: neither."""
    final_answers: int = Field(default=128, ge=0)
    """Fresh answers by which the best policies within the bounds are judged once more, beside the base's to the same
    prompts: who breaks a bound there (perplexity's also where it is one standard error worse than it looks), or takes
    up less of the prompts' wording than the base by more than one standard error, is not published. 0 for never: the
    iterations' own few answers decide."""
    finalists: int = Field(default=1, ge=1)
    """How many policies are judged so, the best first: more where none so far may be published, fewer where the next is
    more than half a standard deviation of the score behind. Each costs about a tenth of a cycle."""
    gold_votes: int = Field(default=512, ge=1)
    """From so many decisive votes on, a share of them is kept from the reward model; a second one, of these alone,
    reads every iteration's answers, and PPO stops where its score is predicted to peak (Gao et al. 2022). With fewer
    votes the reward model needs them all. For `train.reward.head = "mix"` alone."""
    gold_share: float = Field(default=0.2, ge=0, le=0.5)
    """That share of the conversations; 0 for never."""

    @field_validator("final_answers")
    @classmethod
    def _enough_to_tell(cls, final_answers: int) -> int:
        if 0 < final_answers < LEAST_FINAL_ANSWERS:
            raise ValueError(
                f"train.governor.final_answers of {final_answers} tell nothing: at least {LEAST_FINAL_ANSWERS}, better "
                "128; or 0 for no finals"
            )
        return final_answers


class RolloutConfig(Section):
    """`[train.rollout]`: how answers are sampled."""

    source: Literal["local", "serving"] = "local"
    """`local` samples in the trainer, `serving` asks the serving engine's idle capacity over HTTP."""
    max_tokens: int = Field(default=48, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer divides its logits by the same."""
    batch: int = Field(default=64, ge=1)
    """Answers that the local sampler decodes at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the local sampler's merged weights. bfloat16 is quicker where the processor has it; the trainer then corrects
    for the difference."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are left out."""
    attempts: int = Field(default=6, ge=1)
    """Tries of a request to serving before the cycle is held up, to go on later."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for one request to serving."""


class TrainConfig(Section):
    """`[train]` of hustings.toml."""

    seed: int = Field(default=0, ge=0)
    """Of everything random; equal seeds give equal bits on a CPU."""
    threads: int = Field(default=0, ge=0)
    """Computing threads of the trainer; 0 for one a core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """As `serve.chat_template_kwargs`, for texts without token ids (imported ones, and where personal data were taken
    out); none for the same as serving's."""
    tensorboard: bool = False
    """Also write each iteration's figures for TensorBoard, into `train/tensorboard` of the data folder."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes that train together on this machine, one a GPU (several machines: `torchrun`); a LoRA is trained data
    parallel, a whole policy is sharded over them besides."""
    tuning: Literal["lora", "full"] = "lora"
    """What PPO trains: a LoRA adapter, which serving swaps in under live requests; or all weights, which ends in a
    checkpoint that serving must be started with (`hustings up --model FOLDER`), at about ten times the memory."""
    reward: RewardConfig = RewardConfig()
    lora: LoraSettings = LoraSettings()
    full: FullConfig = FullConfig()
    sft: SftConfig = SftConfig()
    ppo: PpoConfig = PpoConfig()
    governor: GovernorConfig = GovernorConfig()
    rollout: RolloutConfig = RolloutConfig()
    review: ReviewConfig = ReviewConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def sft_rate(self) -> float:
        """The warm start's learning rate."""
        return self.sft.learning_rate if self.tuning == "lora" else self.full.learning_rate

    @property
    def policy_rate(self) -> float:
        """PPO's learning rate of the policy."""
        return self.ppo.learning_rate if self.tuning == "lora" else self.full.learning_rate

    @model_validator(mode="after")
    def _what_a_whole_policy_can_do(self) -> Self:
        if self.tuning == "full" and self.rollout.source == "serving":
            raise ValueError(
                'train.tuning = "full" samples in the trainer: serving takes adapters; set '
                'train.rollout.source = "local"'
            )
        if self.tuning == "full" and self.schedule.start_from == "incumbent":
            raise ValueError('train.tuning = "full" begins with the base: set train.schedule.start_from = "base"')
        return self

    @property
    def foresees(self) -> bool:
        """Whether PPO sees a token's reward as the reward model tells it, so that others' could be foreseen."""
        ppo = self.ppo
        plain = ppo.reward_clip is None and ppo.reward_scaling == "none" and ppo.missing_eos_score is None
        return ppo.all_actions and plain and self.reward.credit == "token" and ppo.advantage != "grpo"

    @field_validator("ppo")
    @classmethod
    def _exact_kl_in_loss(cls, ppo: PpoConfig) -> PpoConfig:
        if ppo.kl_estimator == "exact" and ppo.kl_in != "loss":
            raise ValueError('train.ppo.kl_estimator = "exact" wants train.ppo.kl_in = "loss"')
        return ppo

    @field_validator("ppo")
    @classmethod
    def _kl_with_a_gradient(cls, ppo: PpoConfig) -> PpoConfig:
        if ppo.kl_estimator == "k1" and ppo.kl_in == "loss" and ppo.kl_coefficient > 0:
            raise ValueError(
                'train.ppo.kl_estimator = "k1" wants train.ppo.kl_in = "reward": as a loss it pulls nowhere'
            )
        return ppo

    @field_validator("ppo")
    @classmethod
    def _a_price_that_stays_a_price(cls, ppo: PpoConfig) -> PpoConfig:
        if ppo.kl_target is not None and ppo.kl_horizon <= 0.2 * ppo.episodes:
            raise ValueError(
                "train.ppo.kl_horizon of more than a fifth of train.ppo.episodes is needed: with less, one iteration "
                "could turn the KL's price into a reward"
            )
        return ppo

    @field_validator("reward")
    @classmethod
    def _members_to_disagree(cls, reward: RewardConfig) -> RewardConfig:
        if reward.pessimism > 0 and (reward.head != "mix" or reward.members < 2):
            raise ValueError(
                'train.reward.pessimism wants train.reward.head = "mix" and train.reward.members of 2 or more'
            )
        return reward

    @field_validator("ppo")
    @classmethod
    def _others_to_compare_with(cls, ppo: PpoConfig) -> PpoConfig:
        if ppo.advantage != "gae" and ppo.answers_per_prompt < 2:
            raise ValueError(f'train.ppo.advantage = "{ppo.advantage}" wants train.ppo.answers_per_prompt of 2 or more')
        return ppo

    @field_validator("ppo")
    @classmethod
    def _whole_groups(cls, ppo: PpoConfig) -> PpoConfig:
        if ppo.episodes % ppo.answers_per_prompt:
            raise ValueError("train.ppo.episodes must be a multiple of train.ppo.answers_per_prompt")
        return ppo


MEMORY_SETTINGS: dict[str, set[str]] = {
    "ppo": {"micro_tokens", "pass_tokens"},
    "rollout": {"batch"},
    "reward": {"batch_tokens"},
}
"""How much goes through the model at once: what a run needs, not what it learns (but for rounding)."""
PLACE_SETTINGS = ("threads", "device", "processes")
"""Where it runs."""


def with_resources_of(config: TrainConfig, current: TrainConfig) -> TrainConfig:
    """A cycle's configuration with the memory and place settings of today's: a cycle that ran out of memory goes on
    with less at once, in all else as it began."""
    changes: dict[str, object] = {name: getattr(current, name) for name in PLACE_SETTINGS}
    for section, keys in MEMORY_SETTINGS.items():
        now = getattr(current, section)
        changes[section] = getattr(config, section).model_copy(update={key: getattr(now, key) for key in keys})
    return config.model_copy(update=changes)
