import * as v from "valibot";
import { quote } from "../errors.js";
import { IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_ALLOWED } from "../model/ids.js";
import { invalid } from "./problem.js";
import type { AnyRoute } from "./route.js";

type Inputs = Pick<AnyRoute, "params" | "query" | "body" | "isBodyOptional">;

interface Given {
  params: Record<string, string>;
  query: Record<string, string[]>;
  body: unknown;
}

/** Checks the input of a request against the schemas of its route. @throws FleetError `FLEET_USAGE_INVALID`. */
export function readInput(route: Inputs, { params, query, body }: Given) {
  const given = body ?? (route.isBodyOptional === true ? {} : body);
  if (route.body !== null && given === null) throw invalid("The request needs a body: a JSON object.");
  return {
    params: read(route.params, params, "The path"),
    query: read(route.query ?? NO_QUERY, single(query), "The query"),
    body: read(route.body, given, "The body"),
  };
}

/**
 * The key in the header `Idempotency-Key`; undefined without this header. Clients may quote the key, because the draft
 * standard defines the header as a structured field.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`.
 */
export function idempotencyKeyIn(header: string | undefined): string | undefined {
  const key = header?.replace(/^"(.*)"$/, "$1");
  if (key === undefined || IDEMPOTENCY_KEY.test(key)) return key;
  throw invalid(`The header "Idempotency-Key" is ${quote(key)}. Allowed: ${IDEMPOTENCY_KEY_ALLOWED}.`);
}

const NO_QUERY = v.strictObject({});

function read(schema: v.GenericSchema | null, given: unknown, where: string): unknown {
  if (schema === null) return undefined;
  const result = v.safeParse(schema, given);
  if (result.success) return result.output;
  throw invalid(problemOf(result.issues, where));
}

/** Refuses a query that contains a parameter more than once, because programs disagree on what that means. */
function single(query: Record<string, string[]>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(query).map(([name, values]) => {
      if (values.length > 1) throw invalid(`The query has ${quote(name)} ${values.length} times.`);
      return [name, values[0] ?? ""];
    }),
  );
}

/** @returns the first problem, as a sentence */
function problemOf([issue]: [v.BaseIssue<unknown>, ...unknown[]], where: string): string {
  const name = issue.path?.map(({ key }) => String(key)).join(".");
  if (name === undefined) return `${where} is not ${issue.message}.`;
  if (issue.type === "strict_object" && issue.expected === "never")
    return `${where} has the field ${quote(name)}, which this route does not know.`;
  if (issue.input === undefined) return `${where} has no ${quote(name)}.`;
  return `${quote(name)} is ${quote(issue.input)}. Allowed: ${issue.message}`;
}
