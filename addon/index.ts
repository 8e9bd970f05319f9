/** Opens the native addon. See types.ts for what it can do. */
import type { DeviceInfo, Model, ModelOptions, Vocabulary } from './types.ts';

export * from './types.ts';

export declare function listDevices(): DeviceInfo[];
export declare function loadModel(options: ModelOptions): Model;
export declare function openVocabulary(path: string): Vocabulary;
