/** The name that a contributed file is shown under; never a path, and never one on this machine. */
import { limits } from '../../limits.ts';

/** Controls, formats such as direction overrides and zero widths, private and unassigned characters, halves of characters. */
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]/gu;

/** The last part of what was given, without what nobody sees; `file` where nothing is left. */
export function shownFilename(given: string): string {
  const base = given.normalize('NFC').split(/[\\/]/).at(-1) ?? '';
  const name = [...base.replace(UNSEEN, '').trim()].slice(-limits.fileNameCharactersMax).join('');
  return name === '' || /^\.+$/.test(name) ? 'file' : name;
}
