import type { ConfigInput } from "../schema.js";

/** The description of a section. */
export interface SectionDescription {
  /** One sentence. */
  meaning: string;
}

/** The description of a key that has a value. */
export interface KeyDescription extends SectionDescription {
  /** Values that are allowed. */
  examples: readonly [unknown, ...unknown[]];
  /** The default in words, if it depends on other keys. */
  default?: string;
}

/** Whether a key has a value, and is not a section. Also true for an object whose keys the user chooses. */
type IsValue<Input> = Input extends string | number | boolean | readonly unknown[]
  ? true
  : string extends keyof Input
    ? true
    : false;

/** The dotted names of all keys that have a value, and of all sections. */
type Names<Input, Prefix extends string = ""> = {
  [Part in keyof Input & string]-?: IsValue<NonNullable<Input[Part]>> extends true
    ? { value: `${Prefix}${Part}`; section: never }
    : {
        value: Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["value"];
        section: `${Prefix}${Part}` | Names<NonNullable<Input[Part]>, `${Prefix}${Part}.`>["section"];
      };
}[keyof Input & string];

/** The dotted names of all keys that have a value, with their descriptions. */
export type ValueTexts = Readonly<Record<Names<ConfigInput>["value"], KeyDescription>>;

/** The dotted names of all sections, with their descriptions. */
export type SectionTexts = Readonly<Record<Names<ConfigInput>["section"], SectionDescription>>;
