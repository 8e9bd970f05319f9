/** Every bound of the daemon, in one place. Units last. A limit that a user may move has an environment variable in `main.ts`. */

/** The scheduler (daemon/engine). */
export const ENGINE_LIMITS = {
  /** Sequences that are computed at the same time; each is one row of a decode step. */
  runningMax: 32,
  /** Engine sequence ids: the running ones and the finished ones kept as prefix cache. */
  sequencesMax: 64,
  /** Most rows of one step. */
  stepTokensMax: 512,
  /** Prefill rows that a step gets at least while others decode, so that a prompt always moves. */
  prefillRowsMin: 16,
  /** Prefill rows of a step when nobody decodes: large chunks keep the matrix units busy. */
  prefillRowsAloneMin: 128,
  /** Rows of a step that rates tokens: each may need its logits, which are 200 kB in a vocabulary of 49 152. */
  scoreRowsMax: 192,
  /** A step with decoding rows should not take longer: it is the gap that a reader of a stream sees. */
  mixedStepTargetMs: 150,
  /** A step without decoding rows should not take longer: a cancellation and a new request wait for it. */
  aloneStepTargetMs: 600,
  /** Longest warm-up before the engine reports ready; the step under way when it is over still ends. */
  warmUpMs: 350,
  /** KV cells an admitted sequence may count on for what it has still to generate; beyond them it may be preempted. */
  reserveTokens: 256,
  /** Later requests of other adapters that may be admitted before one; then it is first, and what is freed is kept for it. */
  overtakeMax: 32,
  /** Steps that a request waits for an adapter slot before the adapter that had most of the machine must yield one. */
  slotWaitStepsMax: 128,
  /** Shorter common prefixes are computed again: sharing them costs more than it saves. */
  prefixTokensMin: 16,
  /** Share of the KV cells that finished sequences may keep as prefix cache. */
  prefixCacheShare: 0.5,
  /** Sequences (choices) waiting for admission, all callers together; beyond it: 503. */
  waitingMax: 1024,
  /** Sequences one caller may have waiting; beyond it: 429. */
  waitingPerCallerMax: 256,
  /** Memory for the KV cache where nothing else was said: this many bytes, but no more than this share of what there is. */
  kvBytes: 512 * 1024 * 1024,
  kvMemoryShare: 0.2,
  /** A slot on the CPU only refers to weights in host RAM; on a GPU it is memory of its own, as large as the highest rank. */
  slotsCpu: 32,
  slotRankMaxCpu: 256,
  slotsGpu: 16,
  slotRankMaxGpu: 64,
  /** Tokens for which the last `penaltyLast` positions count in penalties. */
  penaltyLast: 64,
} as const;

/** Weights of the virtual token counter (S-LoRA, arXiv 2311.03285, and VTC, arXiv 2401.00588): a generated token costs two prompt tokens. */
export const FAIRNESS = { inputWeight: 1, outputWeight: 2 } as const;

/** The HTTP face (daemon/server.ts). */
export const SERVER_LIMITS = {
  /** Body of a JSON request. A chat of 100 000 tokens is about 0.5 MB. */
  bodyBytesMax: 16 * 1024 * 1024,
  /** Body of an adapter upload. */
  uploadBytesMax: 2 * 1024 * 1024 * 1024,
  /** Bytes that may wait in a stream whose reader does not read; beyond it the reader is cut off. */
  streamBufferBytesMax: 1024 * 1024,
  /** Characters of prompt text; more can't fit any context and would only cost tokenising. */
  promptCharactersMax: 8 * 1024 * 1024,
  /** Bytes of a JSON schema given as response format. */
  schemaBytesMax: 64 * 1024,
  /** Generations and embeddings in progress, waiting ones included. */
  requestsMax: 1024,
  /** How long a shutdown waits for generations to end by themselves before they are told. */
  drainMs: 5_000,
  /** How long an answer may wait for its receipt to be durable. */
  receiptMs: 30_000,
  /** Idle keep-alive connections of a gateway are closed after this. */
  keepAliveMs: 75_000,
  /** A request must arrive whole within this. */
  requestMs: 300_000,
} as const;

/** Tokens of all inputs of one embedding request. */
export const EMBED_TOKENS_MAX = 262_144;

/** Inputs of one embedding request that wait for the engine at the same time; the others follow when these are done. */
export const EMBED_INPUTS_TOGETHER = 64;

/** Datasets and training runs (daemon/training). */
export const TRAINING_LIMITS = {
  /** Body of a dataset: OpenAI's 512 MB of examples, and what their form on the wire adds. */
  datasetBytesMax: 640 * 1024 * 1024,
  /** One example; more is no conversation but a book. */
  lineBytesMax: 8 * 1024 * 1024,
  examplesMax: 1_000_000,
  datasetsMax: 10_000,
  /** All datasets together, with their tokens; what was used longest ago goes first. */
  datasetsBytesMax: 64 * 1024 * 1024 * 1024,
  /** A dataset that no run needs goes when it was not used for so long; one used more recently than `datasetBusyMs` never does. */
  datasetKeptMs: 7 * 24 * 3_600_000,
  datasetBusyMs: 3_600_000,
  datasetSweepMs: 3_600_000,
  /** Problems that are listed; the rest is only counted. */
  problemsMax: 100,
  /** Bins of the histogram of lengths. */
  histogramBins: 32,
  /** Free space that a dataset or a save leaves on the disk. */
  diskReserveBytes: 64 * 1024 * 1024,
  /** Runs that are not over, all owners together, and of one owner. */
  runsMax: 1024,
  runsPerOwnerMax: 64,
  /** Runs that are over and still listed; beyond it the oldest are forgotten. */
  finishedRunsMax: 1024,
  /** How often a run is started again after its worker died. */
  crashesMax: 2,
  /** Longest time that a crash of the whole machine can cost. */
  resumePointMs: 60_000,
  resumePointsKept: 2,
  /** Checkpoints of a run that stay servable. */
  checkpointsKept: 3,
  /** Examples of the validation set that a validation between epochs looks at. */
  validationSample: 32,
  /** Multiply-adds of one layer's linear parts in one micro-batch: long enough for full speed, short enough to hand over the cores. */
  microBatchMacs: 900_000_000,
  microBatchRowsMin: 32,
  microBatchRowsMax: 1024,
  /** Examples of a validation set that are packed together; a step's are never more. */
  packedTogether: 256,
  /** Of the daemon beside the trainer's own allocation while it trains: a batch, a snapshot, the worker's heap. */
  workerBytes: 64 * 1024 * 1024,
  /** A trial for an estimate ends after the first of these. */
  trialMs: 2_500,
  trialMicroBatchesMax: 12,
  /** A cancel or pause answers after this at the latest; what it asked for still happens. */
  commandMs: 10_000,
  /** Idle worker threads end after this. */
  workerIdleMs: 60_000,
  /** JSON bodies of this part. */
  bodyBytesMax: 1024 * 1024,
} as const;
