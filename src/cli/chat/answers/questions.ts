import type { SessionConfig } from "@github/copilot-sdk";
import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import type { Span } from "../terminal/layout.js";
import type { Window } from "../terminal/window.js";

type UserInputHandler = NonNullable<SessionConfig["onUserInputRequest"]>;
type ElicitationHandler = NonNullable<SessionConfig["onElicitationRequest"]>;
type Form = NonNullable<Parameters<ElicitationHandler>[0]["requestedSchema"]>;
type Field = Form["properties"][string];
type Value = string | number | boolean | string[];

/** Puts the agent's questions to the user. */
export class Questions {
  readonly #window: Pick<Window, "ask" | "turn">;

  constructor(window: Pick<Window, "ask" | "turn">) {
    this.#window = window;
  }

  readonly onUserInput: UserInputHandler = async ({ question, choices = [], allowFreeform = true }) => {
    await this.#ownQuestion();
    for (;;) {
      const hint = choices.length === 0 ? [] : [allowFreeform ? "A number or your own answer:" : "A number:"];
      const answer = await this.#ask([question], [...numbered(choices), ...hint]);
      if (answer === null) throw new Error("The user did not answer.");
      const chosen = choices[Number(answer) - 1] ?? choices.find((choice) => choice === answer);
      if (chosen !== undefined) return { answer: chosen, wasFreeform: false };
      if (allowFreeform && answer !== "") return { answer, wasFreeform: true };
    }
  };

  readonly onElicitation: ElicitationHandler = async ({ message, requestedSchema, mode, url, elicitationSource }) => {
    await this.#ownQuestion();
    const source = elicitationSource === undefined ? [] : [`${elicitationSource} asks:`];
    if (mode === "url") {
      const lines = [...source, message, `Open this address in your browser: ${url ?? ""}`];
      return { action: await this.#confirm(lines, "done") };
    }
    const fields = Object.entries(requestedSchema?.properties ?? {});
    if (fields.length === 0) return { action: await this.#confirm([...source, message], "yes") };
    const content: Record<string, Value> = {};
    for (const [name, field] of fields) {
      const isRequired = requestedSchema?.required?.includes(name) ?? false;
      const value = await this.#field([...source, message], name, field, isRequired);
      if (value === null) return { action: "cancel" };
      if (value !== undefined) content[name] = value;
    }
    return { action: "accept", content };
  };

  /**
   * Resolves if the question belongs to a turn of this chat. Otherwise, never settles, because the SDK would send any
   * result or error as the answer. The client that runs the turn has to answer.
   */
  async #ownQuestion(): Promise<void> {
    if ((await this.#window.turn?.asks()) !== true) await new Promise<never>(() => undefined);
  }

  async #confirm(lines: readonly string[], yes: string): Promise<"accept" | "decline" | "cancel"> {
    const choices = [
      { key: "y", label: yes },
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask({ lines: lines.map(plain), choices });
    return answer === "y" ? "accept" : answer === null ? "cancel" : "decline";
  }

  /**
   * Asks for the value of a form field until the field allows the answer. Resolves with undefined if the user leaves an
   * optional field empty, and with null if the question ends without an answer.
   */
  async #field(intro: string[], name: string, field: Field, isRequired: boolean): Promise<Value | null | undefined> {
    const options = optionsOf(field);
    const title = `${field.title ?? name}${isRequired ? "" : " (optional)"}:`;
    const about = [...(field.description === undefined ? [] : [field.description]), ...defaultOf(field, options)];
    for (let problem: string[] = []; ; ) {
      const answer = await this.#ask(intro, [
        title,
        ...about,
        ...numbered(options.map(({ title }) => title)),
        ...problem,
      ]);
      if (answer === null) return null;
      if (answer === "" && field.default !== undefined) return field.default;
      if (answer === "" && !isRequired) return undefined;
      const value = parsed(answer, field, options);
      if (value !== null) return value;
      problem = [allowedIn(field)];
    }
  }

  async #ask(intro: readonly string[], rest: readonly string[]): Promise<string | null> {
    const lines = [...intro.map((text) => ({ ...plain(text), style: colour.bold })), ...rest.map(plain)];
    const answer = await this.#window.ask({ lines, choices: null });
    return answer === null ? null : answer.trim();
  }
}

function plain(text: string): Span {
  return { text: printableLines(text) };
}

interface Option {
  value: string;
  title: string;
}

function numbered(choices: readonly string[]): string[] {
  return choices.map((choice, index) => `${index + 1}. ${choice}`);
}

function optionsOf(field: Field): Option[] {
  const source = field.type === "array" ? field.items : field;
  if ("enum" in source) {
    const titles = "enumNames" in source && Array.isArray(source.enumNames) ? source.enumNames.map(String) : [];
    return source.enum.map((value, index) => ({ value, title: titles[index] ?? value }));
  }
  const titled = "oneOf" in source ? source.oneOf : "anyOf" in source ? source.anyOf : [];
  return titled.map(({ const: value, title }) => ({ value, title }));
}

/** Returns a line that explains which default value an empty answer means; no line if the field has no default. */
function defaultOf({ default: value }: Field, options: readonly Option[]): string[] {
  if (value === undefined) return [];
  const titles = [value].flat().map((each) => options.find((option) => option.value === each)?.title ?? String(each));
  return [`An empty answer means: ${titles.join(", ")}`];
}

/** Converts the user's answer to a value of the field; null if the field does not allow the answer. */
function parsed(answer: string, field: Field, options: readonly Option[]): Value | null {
  const pick = (text: string) => options[Number(text) - 1]?.value ?? options.find(({ value }) => value === text)?.value;
  switch (field.type) {
    case "boolean":
      return /^(?:y|yes|true)$/i.test(answer) ? true : /^(?:n|no|false)$/i.test(answer) ? false : null;
    case "number":
    case "integer": {
      const number = Number(answer);
      const { minimum = Number.NEGATIVE_INFINITY, maximum = Number.POSITIVE_INFINITY } = field;
      const isNumber = field.type === "integer" ? Number.isInteger(number) : Number.isFinite(number);
      return answer !== "" && isNumber && number >= minimum && number <= maximum ? number : null;
    }
    case "array": {
      const values = answer.split(/[\s,]+/).map(pick);
      const { minItems = 0, maxItems = Number.POSITIVE_INFINITY } = field;
      if (values.length < minItems || values.length > maxItems) return null;
      return values.every((value) => value !== undefined) ? values : null;
    }
    default: {
      if (options.length > 0) return pick(answer) ?? null;
      const { minLength = 0, maxLength = Number.POSITIVE_INFINITY } =
        "minLength" in field || "maxLength" in field ? field : {};
      return answer.length >= minLength && answer.length <= maxLength ? answer : null;
    }
  }
}

function allowedIn(field: Field): string {
  switch (field.type) {
    case "boolean":
      return "Answer yes or no.";
    case "number":
    case "integer":
      return `Give a ${field.type === "integer" ? "whole number" : "number"}${within(field.minimum, field.maximum)}.`;
    case "array":
      return `Give the numbers of your choices${within(field.minItems, field.maxItems)}, such as 1, 3.`;
    default:
      return optionsOf(field).length > 0 ? "Give the number of a choice." : "This answer is too short or too long.";
  }
}

function within(min: number | undefined, max: number | undefined): string {
  const bounds = [min === undefined ? "" : `at least ${min}`, max === undefined ? "" : `at most ${max}`];
  const given = bounds.filter((bound) => bound !== "");
  return given.length === 0 ? "" : `, ${given.join(" and ")}`;
}
