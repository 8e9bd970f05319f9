/**
 * XML from a stranger, element by element as it unpacks. Document types are refused, so there are no entities but the five of XML itself, and
 * nothing that expands; depth and the size of any one tag or text are bounded.
 */
import { SaxesParser, type SaxesTagNS } from 'saxes';
import { DocumentError } from './document.ts';
import { documentLimits } from './document-limits.ts';

export interface XmlElement {
  /** Namespace, by its URI. */
  space: string;
  name: string;
  /** By local name: OOXML has no two of one name on an element that matter here. */
  attribute(local: string): string | undefined;
}

export interface XmlHandler {
  open(element: XmlElement): void;
  close(space: string, name: string): void;
  text(text: string): void;
}

const damaged = (why: string) => new DocumentError('unreadable', `The document's XML is damaged: ${why}.`);

/** Feeds the handler; yields after every piece of input, so that what it gathered can be taken. @throws DocumentError */
export async function* parseXml(bytes: AsyncIterable<Uint8Array>, handler: XmlHandler): AsyncGenerator<void> {
  const parser = new SaxesParser<{ xmlns: true; position: false }>({ xmlns: true, position: false });
  let depth = 0;
  /** Characters since something was complete. */
  let quiet = 0;
  parser.on('error', (error) => {
    throw damaged(error.message.slice(0, 120).replace(/\.$/, ''));
  });
  parser.on('doctype', () => {
    throw new DocumentError(
      'unreadable',
      'The document has a document type declaration, which no word processor writes; it is not read.',
    );
  });
  parser.on('opentag', (tag: SaxesTagNS) => {
    quiet = 0;
    depth += 1;
    if (depth > documentLimits.xmlDepthMax)
      throw new DocumentError(
        'too_large',
        `The document is nested more than ${documentLimits.xmlDepthMax} elements deep; it is not read.`,
      );
    handler.open({ space: tag.uri, name: tag.local, attribute: (local) => attributeOf(tag, local) });
  });
  parser.on('closetag', (tag: SaxesTagNS) => {
    quiet = 0;
    depth -= 1;
    handler.close(tag.uri, tag.local);
  });
  const text = (piece: string) => {
    quiet = 0;
    handler.text(piece);
  };
  parser.on('text', text);
  parser.on('cdata', text);
  let decoder: InstanceType<typeof TextDecoder> | null = null;
  const decode = (piece: Uint8Array | null): string => {
    decoder ??= new TextDecoder(
      piece !== null && piece[1] === 0xfe ? 'utf-16le' : piece !== null && piece[0] === 0xfe ? 'utf-16be' : 'utf-8',
      {
        fatal: true,
      },
    );
    try {
      return piece === null ? decoder.decode() : decoder.decode(piece, { stream: true });
    } catch {
      throw damaged('its characters are not in the encoding that it says');
    }
  };
  for await (const piece of bytes) {
    const characters = decode(piece);
    quiet += characters.length;
    parser.write(characters);
    if (quiet > documentLimits.xmlTagCharactersMax)
      throw new DocumentError(
        'too_large',
        'The document has an XML tag or text of more than a million characters; it is not read.',
      );
    yield;
  }
  parser.write(decode(null));
  parser.close();
  yield;
}

function attributeOf(tag: SaxesTagNS, local: string): string | undefined {
  for (const attribute of Object.values(tag.attributes))
    if (attribute.local === local && attribute.prefix !== 'xmlns') return attribute.value;
  return undefined;
}
