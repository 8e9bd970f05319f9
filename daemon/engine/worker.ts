/** The engine thread: owns the model, the engine, and the adapters' tiers. Started by `EngineClient.start`. */
import { parentPort, workerData } from 'node:worker_threads';
import { loadModel, openVocabulary } from '../../addon/index.ts';
import { loadAdapterImage } from '../adapters/load-image.ts';
import { TieredAdapters } from '../adapters/tiers.ts';
import { invariant } from '../errors.ts';
import { EngineHost } from './host.ts';
import type { EngineSettings, FromEngine, ToEngine } from './messages.ts';

const port = parentPort;
invariant(port !== null, 'this file runs in a worker thread');
const settings = workerData as EngineSettings;
const post = (message: FromEngine) => port.postMessage(message);

const vocabulary = openVocabulary(settings.modelPath);
const endTokens = vocabulary.endTokens;
vocabulary.close();

const model = loadModel({
  path: settings.modelPath,
  device: settings.device,
  ...(settings.threads === null ? {} : { threads: settings.threads }),
});
const engine = model.createEngine({
  kvCells: settings.kvCells,
  sequencesMax: settings.scheduler.sequencesMax,
  batchTokensMax: settings.scheduler.stepTokensMax,
  slots: settings.slots,
  slotRankMax: settings.slotRankMax,
});
const tiers = new TieredAdapters(
  {
    loadImage: (adapter) => loadAdapterImage(model, adapter),
    setSlot: (slot, image) => engine.setSlot(slot, image),
    clearSlot: (slot) => engine.clearSlot(slot),
  },
  { slots: settings.slots, hostBytesMax: settings.hostBytesMax },
);

post({ type: 'ready', model: model.info, kvCells: engine.kvCells });
const host = new EngineHost({
  engine,
  tiers,
  endTokens,
  scheduler: settings.scheduler,
  post,
  onExit: () => {
    tiers.close();
    engine.close();
    model.close();
    port.close();
  },
});
port.on('message', (message: ToEngine) => host.receive(message));
