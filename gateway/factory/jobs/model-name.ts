/** Names of fine-tuned models: `ft:BASE:ORGANIZATION:SUFFIX:ID`, and of their checkpoints: `…:ckpt-step-N`. They are names of adapters too. */

/** As long as a name may be, less what a checkpoint adds to it. */
const NAME_MAX = 128 - ':ckpt-step-99999999'.length;
const CHECKPOINT = /:ckpt-step-\d+$/;
/** What the daemon adds to the name of weights that were replaced under it, to keep them. */
const KEPT = /@[0-9a-f]+$/;

/** What an adapter's name cannot hold becomes a hyphen; a colon would look like a part of its own. */
const clean = (text: string) => text.replace(/[^A-Za-z0-9._-]/g, '-');

export function fineTunedModelName(base: string, organization: string, suffix: string | null, id: string): string {
  const rest = `:${clean(organization)}:${suffix === null ? '' : clean(suffix)}:${id}`;
  return `ft:${clean(base).slice(0, Math.max(1, NAME_MAX - 3 - rest.length))}${rest}`;
}

export function isFineTunedName(name: string): boolean {
  return name.startsWith('ft:');
}

/** The model a checkpoint or a kept version belongs to; any other name as it is. */
export function modelOfCheckpoint(name: string): string {
  return name.replace(KEPT, '').replace(CHECKPOINT, '');
}
