/** The part of eld that is used: its own types do not reach its entry for one size. */
declare module 'eld/extrasmall' {
  export interface Eld {
    detect(text: string): {
      /** ISO 639-1; '': none. */
      language: string;
      getScores(): Record<string, number>;
      isReliable(): boolean;
    };
  }
  export const eld: Eld;
}
