import type { ModelInfo } from '../../addon/types.ts';
import { ENGINE_LIMITS } from '../limits.ts';
import type { EngineSettings } from './messages.ts';

export interface EngineSize {
  kvCells: number;
  slots: number;
  slotRankMax: number;
}

/** Keys and values of one position in all layers, as float16. */
export function kvCellBytes(info: Pick<ModelInfo, 'layers' | 'kvHeads' | 'headDim'>): number {
  return info.layers * 2 * info.kvHeads * info.headDim * 2;
}

/**
 * How large the engine is where the settings do not say: KV cells for `kvBytes` (less on a small machine), at least one
 * whole context where that fits the share of memory.
 */
export function engineSize(
  info: Pick<ModelInfo, 'layers' | 'kvHeads' | 'headDim' | 'contextTrained' | 'device'>,
  settings: Pick<EngineSettings, 'kvCells' | 'slots' | 'slotRankMax'>,
  hostMemoryBytes: number,
): EngineSize {
  const cpu = info.device.kind === 'cpu';
  const memory = cpu ? hostMemoryBytes : info.device.memoryFreeBytes;
  const most = Math.floor((memory * ENGINE_LIMITS.kvMemoryShare) / kvCellBytes(info));
  const usual = Math.max(Math.floor(ENGINE_LIMITS.kvBytes / kvCellBytes(info)), info.contextTrained);
  return {
    kvCells: settings.kvCells ?? Math.max(1024, Math.min(usual, most)),
    slots: settings.slots ?? (cpu ? ENGINE_LIMITS.slotsCpu : ENGINE_LIMITS.slotsGpu),
    slotRankMax: settings.slotRankMax ?? (cpu ? ENGINE_LIMITS.slotRankMaxCpu : ENGINE_LIMITS.slotRankMaxGpu),
  };
}
