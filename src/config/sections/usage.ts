import * as v from "valibot";
import * as rules from "../rules.js";

/** The ledger of turns and model requests. */
export const usage = v.pipe(
  v.strictObject({ retention: v.optional(rules.age(), "400d") }),
  v.transform(({ retention }) => ({ retentionMs: retention })),
);

/** The prices of a million tokens of a model, in any currency. */
export interface Price {
  input: number;
  /** For input tokens that the service read from its cache. */
  cached: number;
  output: number;
}

export type Prices = Readonly<Record<string, Price>>;

const ALLOWED =
  'an object with the names of models, each with its prices, such as {"gpt-5": {"input": 1.25, "cached": 0.125, "output": 10}}';
const MOST = 1_000_000;
const ALLOWED_PRICE = `a number from 0 to ${MOST}, which is the price of a million tokens`;

const amount = () => v.pipe(v.number(ALLOWED_PRICE), v.minValue(0, ALLOWED_PRICE), v.maxValue(MOST, ALLOWED_PRICE));

const price = v.pipe(
  v.strictObject({ input: amount(), cached: v.optional(amount()), output: amount() }, ({ expected }) =>
    expected === "never" ? "the keys input, cached and output" : ALLOWED,
  ),
  // Without a price of their own, cached tokens cost as much as other input tokens.
  v.transform(({ cached, ...rest }): Price => ({ ...rest, cached: cached ?? rest.input })),
);

export const prices = v.pipe(
  v.record(v.string(), price, ALLOWED),
  v.metadata({ allowed: ALLOWED, json: true, kind: "object" }),
);
