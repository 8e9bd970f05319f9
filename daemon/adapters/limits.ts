/** Bounds of what an adapter may be and cost. */
export const ADAPTER_LIMITS = {
  /** Weights file. Rank 256 in f32 on all layers of a 7B model has 2.6 GB; half precision or a lower rank fits. */
  fileBytesMax: 2 * 1024 * 1024 * 1024,
  configBytesMax: 256 * 1024,
  /** `pairs.json`: about 170 bytes a pair, two tensors each. */
  pairsBytesMax: 4 * 1024 * 1024,
  /** `record.json`: recipe, dataset, metrics, notes. */
  recordBytesMax: 1024 * 1024,
  /** JSON header of a safetensors file: about 130 bytes a tensor. */
  headerBytesMax: 4 * 1024 * 1024,
  tensorsMax: 20_000,
  tensorNameBytesMax: 512,
  rankMax: 256,
  /** Beyond this |alpha| no training ends; it also keeps scale × weight far from overflow. */
  alphaMax: 1_000_000,
  patternsMax: 1024,
  /** Characters of one pattern. */
  patternLengthMax: 1024,
  /** Instructions a pattern may compile to; bounds counted repetition. */
  patternStatesMax: 4096,
  patternDepthMax: 32,
  /** Free space that an import leaves on the disk. */
  diskReserveBytes: 64 * 1024 * 1024,
  /** Files of one upload; more than these two are read over. */
  uploadFilesMax: 32,
  /** Bytes of a weights file read at a time. */
  readBytes: 4 * 1024 * 1024,
  namesMax: 100_000,
  /** Characters, as `adapterName` of the protocol has it. */
  nameLengthMax: 128,
} as const;

/** Downloads from the hub. */
export const HUB_LIMITS = {
  /** Until the headers of an answer are there. */
  headersMs: 15_000,
  /** Longest silence within a body. */
  idleMs: 30_000,
  /** A whole download. */
  totalMs: 30 * 60_000,
  redirectsMax: 5,
} as const;

/** The tiers inside the engine thread. */
export const TIER_LIMITS = {
  /** Adapters read and built at the same time: while streams run, each waits for the ends of steps, so one alone uses little. */
  loadsMax: 4,
  /** For so long everybody who asks for an adapter that failed to load hears the same, before it is tried again. */
  failureMs: 1_000,
  /** Load times kept until somebody takes them. */
  samplesMax: 4_096,
} as const;

/** Adapters out. */
export const EXPORT_LIMITS = {
  /** Exports at the same time; each merge is a thread. */
  concurrentMax: 4,
  /** A reader who takes nothing for so long is cut off. */
  idleMs: 120_000,
  /** Bytes of a file read at a time. */
  readBytes: 1024 * 1024,
  /** Hashes of files that are remembered. */
  hashesKept: 4_096,
} as const;
