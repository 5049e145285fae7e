import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import mustache from "mustache";
import wrapAnsi from "wrap-ansi";
import { quote } from "../base/errors.js";
import { unfit } from "./deployment.js";

/**
 * Fills a template of the folder `deploy/`. Its README describes the syntax.
 *
 * @param escaped makes a value harmless at the places where the template has values
 */
export function fill(name: string, view: object, escaped: (value: string) => string): string {
  const folder = join(dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json")), "deploy");
  const read = (file: string) => readFileSync(join(folder, file), "utf8");
  return mustache.render(read(name), view, read, { escape: (value) => escaped(String(value)) });
}

/** Fills the sentences for the reader of the output. */
export function fillNotices(name: string, view: object): string[] {
  const notices = fill(name, view, (value) => value.replace(/[\s\p{Cc}\u2028\u2029]+/gu, " "));
  return notices.split("\n").flatMap((line) => (line === "" ? [] : [line.trim()]));
}

/** Escapes a value inside double quotes in YAML 1.1 and 1.2. */
export function inYaml(value: string): string {
  return escapeUnicode(JSON.stringify(value).slice(1, -1));
}

/** Escapes a value as {@link inYaml} does, and each "$", because Compose substitutes variables. */
export function inCompose(value: string): string {
  return inYaml(value.replaceAll("$", "$$$$"));
}

/** Escapes a value inside double quotes in a unit file (systemd.syntax(7); systemd.unit(5) for "%"). */
export function inUnit(value: string): string {
  if (/\p{Cc}/u.test(value)) {
    throw unfit(`${quote(value)} has a control character, which cannot be in a unit file`, [
      "Use a name without line breaks and tabs.",
    ]);
  }
  return value.replace(/[\\"]/g, "\\$&").replaceAll("%", "%%");
}

/** Escapes the characters of a JSON text that YAML takes for line breaks, or does not allow. */
export function escapeUnicode(json: string): string {
  return json.replace(
    /[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Renders notices as comment lines of limited width. */
export function commented(notices: readonly string[]): string {
  const lines = notices.flatMap((notice) => wrapAnsi(notice, 118).split("\n"));
  return lines.map((line) => `# ${line}\n`).join("");
}
