/** Bounds of what a GGUF file may claim, so that a hostile header costs milliseconds and kilobytes, not the process. */
export const GGUF_LIMITS = {
  /** Metadata and tensor table together. Gemma's vocabulary of 262 144 tokens needs about 15 MB. */
  headerBytesMax: 64 * 1024 * 1024,
  /** The same for an adapter, which carries no vocabulary. */
  adapterHeaderBytesMax: 4 * 1024 * 1024,
  metadataMax: 4096,
  tensorsMax: 65_536,
  keyBytesMax: 256,
  /** ggml holds names in 64 bytes, terminator included. */
  tensorNameBytesMax: 63,
  /** Longest string that is kept in memory; longer ones (an embedded tokenizer.json) are skipped. */
  stringKeptBytesMax: 64 * 1024,
  /** Longest array whose numbers are kept; longer ones are known by type and length only. */
  arrayKeptMax: 1024,
  arrayElementsMax: 16_777_216,
  alignmentMax: 65_536,
  /** Bytes read from the file at a time. */
  windowBytes: 256 * 1024,
  layersMax: 512,
  embeddingMax: 65_536,
  feedForwardMax: 1_048_576,
  headsMax: 1024,
  headDimMax: 1024,
  vocabularyMax: 2_097_152,
  contextMax: 16_777_216,
} as const;
