import type { ConfigView, ValueOrigin, ValueView } from "../../config/load/inspect.js";
import { printable } from "../../config/values/text.js";
import type { FleetError } from "../../errors.js";
import type { Written } from "../../fleet/init/init.js";
import { errorText } from "../report.js";
import { colour } from "./colour.js";
import { renderTable } from "./table.js";

/** A problem of the configuration, as the `--json` output contains it. */
export interface ConfigProblem {
  code: string;
  message: string;
  suggestions: string[];
}

export function problemView({ code, message, suggestions }: FleetError): ConfigProblem {
  return { code, message, suggestions: [...suggestions] };
}

/** Sets exit code 3 if the configuration has problems. Prints them on standard error, but not with `--json`. */
export function reportProblems({ problems }: ConfigView, isJson: boolean): void {
  if (problems.length === 0) return;
  process.exitCode = 3;
  if (isJson) return;
  for (const problem of problems) process.stderr.write(`Error: ${errorText(problem)}\n`);
}

/** Renders a value for people and scripts: a text without quotes, and everything else as JSON. */
export function renderValue(value: unknown): string {
  return typeof value === "string" ? printable(value) : printable(JSON.stringify(value));
}

export function renderValues(values: readonly (readonly [string, ValueView])[]): string {
  const columns = [
    { heading: "KEY", cut: "middle" },
    { heading: "VALUE", cut: "end" },
    { heading: "ORIGIN", cut: "middle" },
  ] as const;
  const rows = values.map(([name, { value, origin }]) => [name, renderValue(value), renderOrigin(origin)]);
  return renderTable(columns, rows);
}

function renderOrigin({ from, name, line }: ValueOrigin): string {
  if (name === null) return colour.dim(from);
  return `${from} ${printable(name)}${line === null ? "" : `:${line}`}`;
}

/** Reports what `init` did, and the next step. */
export function renderWritten({ path, trusted, overriddenBy, replaces }: Written, reply: string | null): string {
  return [
    ...(reply === null ? [] : [`The model replied: ${printable(reply)}`]),
    `Wrote ${printable(path)}`,
    ...(trusted === null ? [] : ["You trust this file until its content changes (copilotfleet trust)."]),
    ...(replaces === null ? [] : [`Here, it takes the place of ${printable(replaces)}`]),
    ...overriddenBy.map((name) => `${name} is set, and takes precedence over the file.`),
    "Next: copilotfleet create --user alice --prompt hello",
  ].join("\n");
}
