/**
 * A version described as Croissant 1.1 (docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html) with its provenance in PROV-O: which people its
 * rows are from, which version it follows, which act made it. The records themselves are the JSONL export, named by its SHA-256.
 */
import type { DatanetKind, DatanetRow, VersionRow } from '../../db/datanet-schema.ts';
import type { VersionStatistics } from '../versions/statistics.ts';

/** The context that the specification recommends, and PROV; schema.org by the address that the reference implementation knows it by. */
const CONTEXT = {
  '@language': 'en',
  '@vocab': 'https://schema.org/',
  sc: 'https://schema.org/',
  cr: 'http://mlcommons.org/croissant/',
  rai: 'http://mlcommons.org/croissant/RAI/',
  dct: 'http://purl.org/dc/terms/',
  prov: 'http://www.w3.org/ns/prov#',
  annotation: 'cr:annotation',
  arrayShape: 'cr:arrayShape',
  citeAs: 'cr:citeAs',
  column: 'cr:column',
  conformsTo: 'dct:conformsTo',
  containedIn: 'cr:containedIn',
  data: { '@id': 'cr:data', '@type': '@json' },
  dataType: { '@id': 'cr:dataType', '@type': '@vocab' },
  equivalentProperty: 'cr:equivalentProperty',
  examples: { '@id': 'cr:examples', '@type': '@json' },
  excludes: 'cr:excludes',
  extract: 'cr:extract',
  field: 'cr:field',
  fileProperty: 'cr:fileProperty',
  fileObject: 'cr:fileObject',
  fileSet: 'cr:fileSet',
  format: 'cr:format',
  includes: 'cr:includes',
  isArray: 'cr:isArray',
  isLiveDataset: 'cr:isLiveDataset',
  jsonPath: 'cr:jsonPath',
  key: 'cr:key',
  md5: 'cr:md5',
  parentField: 'cr:parentField',
  path: 'cr:path',
  recordSet: 'cr:recordSet',
  references: 'cr:references',
  regex: 'cr:regex',
  readLines: 'cr:readLines',
  repeated: 'cr:repeated',
  replace: 'cr:replace',
  samplingRate: 'cr:samplingRate',
  sdVersion: 'cr:sdVersion',
  separator: 'cr:separator',
  source: 'cr:source',
  subField: 'cr:subField',
  transform: 'cr:transform',
  unArchive: 'cr:unArchive',
  value: 'cr:value',
} as const;

export interface CroissantFacts {
  datanet: DatanetRow;
  version: VersionRow;
  owner: { type: 'user' | 'organization'; id: string; name: string };
  /** Where this gateway is reached, without a slash at the end. */
  base: string;
  /** Of the JSONL export with provenance. */
  file: { sha256: string; bytes: number };
}

const FILE = 'rows.jsonl';
const RECORDS = 'examples';

interface FieldFacts {
  name: string;
  description: string;
  /** Where it is in a line of the file. */
  from: string;
  equivalent?: string;
  /** A list of messages, here inside the value. '' = the value itself. */
  messages?: string;
}

const FIELDS: Record<DatanetKind, readonly FieldFacts[]> = {
  chat: [
    { name: 'messages', description: 'The conversation, in the OpenAI chat format.', from: 'messages', messages: '' },
  ],
  completion: [
    { name: 'prompt', description: 'What the completion follows; may be empty.', from: 'prompt' },
    { name: 'completion', description: 'What is learned.', from: 'completion' },
  ],
  preference: [
    {
      name: 'input',
      description: 'The conversation so far, in the OpenAI chat format.',
      from: 'input',
      messages: 'messages',
    },
    { name: 'preferred_output', description: 'The better answer.', from: 'preferred_output', messages: '' },
    { name: 'non_preferred_output', description: 'The worse answer.', from: 'non_preferred_output', messages: '' },
  ],
};
const ABOUT_ROWS: readonly FieldFacts[] = [
  { name: 'row', description: 'Id of the row.', from: '_row' },
  {
    name: 'contributor',
    description: 'Id of the person who contributed the row.',
    from: '_contributor',
    equivalent: 'prov:wasAttributedTo',
  },
  { name: 'licence', description: 'SPDX expression that the row was contributed under.', from: '_licence' },
  {
    name: 'content_sha256',
    description: 'SHA-256 of the canonical JSON of the row, which its leaf in the Merkle tree names.',
    from: '_content_sha256',
  },
];

function fieldOf({ name, description, from, equivalent, messages }: FieldFacts): object {
  const id = `${RECORDS}/${name}`;
  const about = { '@type': 'cr:Field', '@id': id, name, description };
  const source = { fileObject: { '@id': FILE }, extract: { column: from } };
  if (messages === undefined) {
    return {
      ...about,
      dataType: 'sc:Text',
      ...(equivalent === undefined ? {} : { equivalentProperty: equivalent }),
      source,
    };
  }
  return {
    ...about,
    isArray: true,
    arrayShape: '-1',
    subField: ['role', 'content'].map((part) => ({
      '@type': 'cr:Field',
      '@id': `${id}/${part}`,
      name: part,
      description: part === 'role' ? 'Who speaks.' : 'What is said.',
      dataType: 'sc:Text',
      source: {
        ...source,
        transform: [...(messages === '' ? [] : [{ jsonPath: messages }]), { jsonPath: part }],
      },
    })),
  };
}

/** One identifier of the SPDX list has an address of its own; an expression is told in words. */
function licenceOf({ licence, terms }: Pick<VersionRow, 'licence' | 'terms'>): unknown {
  const known = /^[A-Za-z0-9.-]+$/.test(licence) && !/^(?:LicenseRef|DocumentRef)-/.test(licence);
  const url = `https://spdx.org/licenses/${licence}`;
  if (known && terms === '') return url;
  return {
    '@type': 'sc:CreativeWork',
    name: licence,
    ...(known ? { url } : {}),
    ...(terms === '' ? {} : { text: terms }),
  };
}

/** Words inside a BibTeX field: nothing that ends the field or is a command there. */
function inBibtex(text: string): string {
  return text
    .replace(/[\p{C}\s]+/gu, ' ')
    .replace(/[\\{}"@]/g, '')
    .replace(/[%&$#_]/g, '\\$&')
    .trim();
}

function citation({ datanet, version, owner, base }: CroissantFacts, at: Date): string {
  const fields = {
    title: inBibtex(`${datanet.name} (version ${version.number})`),
    author: inBibtex(owner.name || owner.id),
    year: String(at.getUTCFullYear()),
    url: `${base}/api/datanets/${datanet.id}/versions/${version.number}`,
    note: `Merkle root ${version.root}`,
  };
  const lines = Object.entries(fields).map(([name, value]) => `  ${name} = {${value}}`);
  return `@misc{${datanet.id}-v${version.number},\n${lines.join(',\n')}\n}`;
}

export function croissantOf(facts: CroissantFacts): Record<string, unknown> {
  const { datanet, version, owner, base, file } = facts;
  const statistics = version.statistics as unknown as VersionStatistics;
  const here = `${base}/api/datanets/${datanet.id}`;
  const address = (number: number) => `${here}/versions/${number}`;
  const person = (id: string) => `urn:modelfactory:${id}`;
  const at = new Date(version.createdAt);
  const maker = {
    '@type': owner.type === 'organization' ? 'sc:Organization' : 'sc:Person',
    '@id': person(owner.id),
    identifier: owner.id,
    name: owner.name || owner.id,
  };
  const languages = Object.keys(statistics.languages).filter((code) => code !== 'und');
  return {
    '@context': CONTEXT,
    '@type': 'sc:Dataset',
    '@id': address(version.number),
    conformsTo: 'http://mlcommons.org/croissant/1.1',
    name: datanet.name,
    description: datanet.description || datanet.summary || datanet.name,
    url: here,
    // Versions of Datanets are whole numbers; rows may have gone since the one before.
    version: `${version.number}.0.0`,
    license: licenceOf(version),
    creator: maker,
    publisher: maker,
    datePublished: at.toISOString(),
    dateCreated: new Date(datanet.createdAt).toISOString(),
    dateModified: at.toISOString(),
    isLiveDataset: false,
    ...(datanet.tags.length === 0 ? {} : { keywords: datanet.tags }),
    ...(languages.length === 0 ? {} : { inLanguage: languages }),
    citeAs: citation(facts, at),
    identifier: `sha256:${version.root}`,
    'prov:wasAttributedTo': statistics.by_contributor.map(({ contributor, rows, generated }) => ({
      '@type': 'prov:Agent',
      '@id': person(contributor),
      'prov:label': contributor,
      additionalProperty: [
        { '@type': 'sc:PropertyValue', name: 'rows', value: rows },
        { '@type': 'sc:PropertyValue', name: 'rows written by a model', value: generated },
      ],
    })),
    ...(version.number === 1 ? {} : { 'prov:wasDerivedFrom': { '@id': address(version.number - 1) } }),
    'prov:wasGeneratedBy': {
      '@type': 'prov:Activity',
      '@id': `${address(version.number)}#${version.cause}`,
      'prov:label': version.cause,
      'prov:endedAtTime': at.toISOString(),
      'prov:wasAssociatedWith': {
        '@type': 'prov:Agent',
        '@id': person(version.createdBy),
        'prov:label': version.createdBy,
      },
    },
    distribution: [
      {
        '@type': 'cr:FileObject',
        '@id': FILE,
        name: FILE,
        description: 'One row a line, in the order of the Merkle tree.',
        contentUrl: `${address(version.number)}/export?format=jsonl&provenance=true`,
        contentSize: `${file.bytes} B`,
        encodingFormat: 'application/jsonlines',
        sha256: file.sha256,
      },
    ],
    recordSet: [
      {
        '@type': 'cr:RecordSet',
        '@id': RECORDS,
        name: RECORDS,
        description: 'The rows of this version.',
        key: { '@id': `${RECORDS}/row` },
        field: [...FIELDS[datanet.kind], ...ABOUT_ROWS].map(fieldOf),
      },
    ],
  };
}
