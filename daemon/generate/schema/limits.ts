/** Bounds of schemas that become grammars. */
export const SCHEMA_LIMITS = {
  /** Schemas within schemas, references followed. */
  depthMax: 64,
  /** Schemas in one schema, after `allOf` and siblings of alternatives were put together. */
  nodesMax: 5_000,
  /** Optional properties of one object: the grammar grows with their square. */
  optionalPropertiesMax: 128,
  patternCharactersMax: 4_096,
  patternDepthMax: 32,
} as const;
