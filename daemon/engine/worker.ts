/** The engine thread: owns the model, the engine, and the adapters' tiers. Started by `EngineClient.start`. */
import { totalmem } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { loadModel, openVocabulary } from '../../addon/index.ts';
import { loadAdapterImage } from '../adapters/load-image.ts';
import { TieredAdapters } from '../adapters/tiers.ts';
import { invariant } from '../errors.ts';
import { EngineHost } from './host.ts';
import type { EngineSettings, FromEngine, ToEngine } from './messages.ts';
import { engineSize } from './size.ts';
import { warmUp } from './warm-up.ts';

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
  exact: settings.exact ?? false,
  ...(settings.threads === null ? {} : { threads: settings.threads }),
});
const size = engineSize(model.info, settings, totalmem());
const engine = model.createEngine({
  kvCells: size.kvCells,
  sequencesMax: settings.scheduler.sequencesMax,
  batchTokensMax: settings.scheduler.stepTokensMax,
  slots: size.slots,
  slotRankMax: size.slotRankMax,
});
const tiers = new TieredAdapters(
  {
    loadImage: (adapter) => loadAdapterImage(model, adapter),
    setSlot: (slot, image) => engine.setSlot(slot, image),
    clearSlot: (slot) => engine.clearSlot(slot),
  },
  {
    slots: size.slots,
    hostBytesMax: settings.hostBytesMax,
    onError: (digest, cause) => post({ type: 'load_failed', digest, cause: String(cause) }),
  },
);
await warmUp({
  ...size,
  model,
  engine,
  sequencesMax: settings.scheduler.sequencesMax,
  rowsMax: settings.scheduler.stepTokensMax,
});

post({ type: 'ready', model: model.info, kvCells: engine.kvCells, slots: size.slots });
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
