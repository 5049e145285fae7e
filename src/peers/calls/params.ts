import { FleetError, quote } from "../../errors.js";
import type { TokenSource } from "../../model/server.js";

/**
 * Parameters that arrived from another host. Each method checks the type of one parameter.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`.
 */
export class Params {
  readonly #given: Readonly<Record<string, unknown>>;

  constructor(given: object) {
    this.#given = { ...given };
  }

  /** Whether the parameter is given. Null counts as left out. */
  has(name: string): boolean {
    return this.#get(name) !== undefined;
  }

  text(name: string): string {
    const value = this.#get(name);
    if (typeof value === "string" && value !== "" && !value.includes("\0")) return value;
    throw unfit(name, "a text");
  }

  texts(name: string): string[] {
    const value = this.#get(name);
    if (Array.isArray(value) && value.every((each) => typeof each === "string" && each !== ""))
      return value as string[];
    throw unfit(name, "a list of texts");
  }

  /** A whole number from 0 to `max`. */
  whole(name: string, max: number): number {
    const value = this.#get(name);
    if (Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max) return value as number;
    throw unfit(name, `a whole number from 0 to ${max}`);
  }

  flag(name: string): boolean {
    const value = this.#get(name);
    if (typeof value === "boolean") return value;
    throw unfit(name, "true or false");
  }

  object(name: string): Params {
    const value = this.#get(name);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return new Params(value);
    throw unfit(name, "an object");
  }

  /** The place of a token on the host that is asked. Tokens themselves are never sent. */
  tokenSource(name: string): TokenSource {
    const source = this.object(name);
    switch (source.text("from")) {
      case "env":
        return { from: "env", name: source.text("name") };
      case "file":
        return { from: "file", path: source.text("path") };
      default:
        throw unfit(name, "a variable or a file of this host");
    }
  }

  #get(name: string): unknown {
    return Object.hasOwn(this.#given, name) ? (this.#given[name] ?? undefined) : undefined;
  }
}

function unfit(name: string, allowed: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `${quote(name)} in a call from another host is not ${allowed}.`, {
    suggestions: ["Use the same version of copilotfleet on all hosts."],
  });
}
