import { generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  formatCheckpoint,
  openCheckpoint,
  parseCheckpoint,
  signCheckpoint,
} from '../../../daemon/receipts/checkpoint.ts';
import { emptyRoot } from '../../../daemon/receipts/merkle.ts';
import { formatVkey, NoteError, openNote, parseNote, parseVkey, signNote } from '../../../daemon/receipts/note.ts';

// The example of the C2SP signed-note specification.
const VKEY = 'example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k';
const NOTE = `This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
`;

function newSigner(name: string) {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const vkey = formatVkey(name, publicKey.export({ format: 'der', type: 'spki' }).subarray(-32));
  return { signer: { name, keyId: parseVkey(vkey).keyId, privateKey }, verifier: parseVkey(vkey) };
}

describe('signed note', () => {
  it('opens the golden note of the specification', () => {
    const verifier = parseVkey(VKEY);
    expect(verifier.keyId).toBe(0x530d903a);
    expect(openNote(NOTE, [verifier]).text).toBe('This is an example message.\n');
    expect(openNote(Buffer.from(NOTE), [verifier]).verifiedBy).toEqual([verifier]);
    expect(parseNote(NOTE).signatures[0]?.signature).toHaveLength(64);
  });

  it('refuses the golden note when any one of its bytes is changed', () => {
    const verifier = parseVkey(VKEY);
    const bytes = Buffer.from(NOTE);
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at]! ^= 0x01;
      expect(() => openNote(changed, [verifier]), `byte ${at}`).toThrow(NoteError);
    }
  });

  it('refuses unknown keys, a bad signature of a known key beside a good one of another, and malformed lines', () => {
    const a = newSigner('a.example/log');
    const b = newSigner('b.example/log');
    const note = signNote('text\n', [a.signer, b.signer]);
    expect(openNote(note, [a.verifier, b.verifier]).verifiedBy).toHaveLength(2);
    expect(openNote(note, [b.verifier]).verifiedBy).toEqual([b.verifier]);
    expect(() => openNote(note, [newSigner('a.example/log').verifier])).toThrow(/not signed by a known key/);
    const lines = note.split('\n');
    const forged = signNote('other\n', [b.signer]).split('\n')[2];
    const mixed = [...lines.slice(0, 3), forged, ''].join('\n');
    expect(() => openNote(mixed, [a.verifier, b.verifier])).toThrow(/does not verify/);
    for (const bad of [
      'text\n',
      'text\n\n',
      'text\n\n- x AAAA\n',
      'text\n\n— x\n',
      'text\n\n— x y+ AAAAAAAAAAA=\n',
      note.slice(0, -1),
    ])
      expect(() => parseNote(bad), JSON.stringify(bad)).toThrow(NoteError);
    expect(() => parseNote(Buffer.from([0xff, 0x0a]))).toThrow(/UTF-8/);
    expect(() => signNote('bell\u0007\n', [a.signer])).toThrow(/control/);
  });

  it('splits at the last empty line, so a text may hold empty lines', () => {
    const { signer, verifier } = newSigner('x');
    const note = signNote('one\n\n— not a signature\n\ntwo\n', [signer]);
    expect(openNote(note, [verifier]).text).toBe('one\n\n— not a signature\n\ntwo\n');
  });

  it('takes at least sixteen signatures and has a limit', () => {
    const { signer, verifier } = newSigner('x');
    const others = Array.from({ length: 16 }, (_, i) => newSigner(`other${i}`).signer);
    expect(openNote(signNote('t\n', [...others, signer]), [verifier]).text).toBe('t\n');
    expect(() => parseNote(signNote('t\n', Array(65).fill(signer)))).toThrow(/more than 64/);
  });

  it('refuses verifier keys whose hash, type or length is wrong', () => {
    for (const bad of [
      '',
      'a',
      'a+b',
      VKEY.replace('530d903a', '530d903b'),
      VKEY.replace('+Ae', '+Ag'),
      `${VKEY}AAAA`,
      VKEY.replace('foo', 'f o'),
      `+530d903a+${VKEY.split('+')[2]}`,
    ])
      expect(() => parseVkey(bad), bad).toThrow(NoteError);
  });

  it('parsers throw nothing but NoteError, whatever they are given', () => {
    const { signer } = newSigner('x');
    const good = signCheckpoint({ size: 3, rootHash: emptyRoot() }, signer);
    const mutated = fc
      .tuple(fc.nat(good.length), fc.nat(10), fc.string({ unit: 'binary', maxLength: 10 }))
      .map(([at, remove, insert]) => good.slice(0, at) + insert + good.slice(at + remove));
    const input = fc.oneof(fc.string({ unit: 'binary' }), fc.uint8Array(), mutated);
    const onlyNoteErrors = (work: () => unknown) => {
      try {
        work();
      } catch (error) {
        expect(error).toBeInstanceOf(NoteError);
      }
    };
    fc.assert(
      fc.property(input, (given) => {
        onlyNoteErrors(() => parseNote(given));
        onlyNoteErrors(() => parseCheckpoint(given));
        onlyNoteErrors(() => parseVkey(Buffer.from(given).toString()));
      }),
      { numRuns: 1_000 },
    );
  });
});

describe('checkpoint', () => {
  it('round-trips through signing, with sizes beyond 2^53', () => {
    const { signer, verifier } = newSigner('log.example/7');
    const size = 2n ** 64n - 1n;
    const opened = openCheckpoint(signCheckpoint({ size, rootHash: emptyRoot() }, signer), verifier);
    expect(opened).toEqual({ origin: 'log.example/7', size, rootHash: emptyRoot(), extensions: [] });
  });

  it('refuses sizes and roots that are not written the one right way', () => {
    const { signer } = newSigner('o');
    const body = formatCheckpoint({ origin: 'o', size: 12, rootHash: emptyRoot() });
    const [, , root] = body.split('\n');
    for (const bad of ['o\n012\n', 'o\n-1\n', 'o\n1e3\n', `o\n${2n ** 64n}\n`, 'o\n0x1\n', 'o\n\n', 'o\n'])
      expect(() => parseCheckpoint(signNote(`${bad}${root}\n`, [signer])), bad).toThrow(NoteError);
    for (const bad of ['', 'AAAA', `${root}=`, root!.replace('+', '-').replace('/', '_').slice(0, -1)])
      expect(() => parseCheckpoint(signNote(`o\n12\n${bad}\n`, [signer])), bad).toThrow(NoteError);
    expect(parseCheckpoint(signNote(`${body}extension\n`, [signer])).extensions).toEqual(['extension']);
  });

  it('is refused when signed by a key of another log', () => {
    const a = newSigner('a');
    const note = signNote(formatCheckpoint({ origin: 'b', size: 1, rootHash: emptyRoot() }), [a.signer]);
    expect(() => openCheckpoint(note, a.verifier)).toThrow(/of the log "b"/);
  });
});
