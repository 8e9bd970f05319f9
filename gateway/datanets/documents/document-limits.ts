/** Every cap of reading documents. They hold inside a process of their own, so that what slips through takes nothing else down. */
export const documentLimits = {
  /** Of the file. PDFs are held whole while they are read. */
  fileBytesMax: 64 * 1024 * 1024,
  /** JavaScript heap of the reader. */
  heapMb: 256,
  /** Resident memory of the reader; more ends it. Node with the PDF library takes about 110 MB before it reads anything. */
  residentBytesMax: 768 * 1024 * 1024,
  /** How often the resident memory is looked at. */
  watchMs: 50,
  /** Time the reader may work on one document, without the time it waits for whoever takes its chunks. */
  workMs: 120_000,
  /** Time until its first sign of life. */
  startMs: 20_000,
  /** One typed array of the reader: a Flate stream decodes into one. */
  arrayBytesMax: 64 * 1024 * 1024,
  /** Large typed arrays that a document may ask for in all. */
  arraysBytesMax: 4 * 1024 * 1024 * 1024,
  /** Text that a document may hold, in UTF-16 units. */
  textCharactersMax: 32 * 1024 * 1024,
  /** Chunks are handed over when so many characters have come together. */
  batchCharacters: 64 * 1024,
  chunkCharactersMin: 200,
  chunkCharactersMax: 20_000,
  /** A word longer than so many chunks is no word: it is cut. */
  wordChunksMax: 4,

  pdfPagesMax: 5_000,
  /** Pieces of text on one page. */
  pdfItemsMax: 200_000,

  zipEntriesMax: 2_000,
  /** All that the archive says it unpacks to, pictures included. */
  zipBytesMax: 512 * 1024 * 1024,
  /** Unpacked bytes for one packed byte, of parts of more than zipRatioFromBytes. Real documents' XML stays below 60. */
  zipRatioMax: 200,
  zipRatioFromBytes: 1024 * 1024,
  /** One part that is read: the text, the styles. */
  xmlBytesMax: 96 * 1024 * 1024,
  xmlDepthMax: 256,
  /** Attributes of one element, and characters of what is read at once (a tag, a run of text) before it is looked at. */
  xmlTagCharactersMax: 1024 * 1024,
  stylesMax: 20_000,
} as const;
