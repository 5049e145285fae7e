import * as v from "valibot";
import { ALLOWED_SAFE_URL, isSafeUrl } from "../base/values/network.js";
import * as lists from "./rules.js";
import * as rules from "./rules.js";

/* How users prove to the front door who they are. */

/** Only asymmetric algorithms. With a symmetric algorithm, everybody who can verify a token could also make one. */
const ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"] as const;
const FIELDS = "issuer, audience, jwks, algorithms, user, groups, scopes, claims and clockSkew";

/** A text that must equal a text in the token, so it is used exactly as it was given. */
const exact = (allowed: string) =>
  v.pipe(
    v.string(allowed),
    v.minLength(1, allowed),
    v.maxLength(512, allowed),
    v.check((text) => !/\p{Cc}/u.test(text), allowed),
  );
const claim = () => exact('the name of a claim, such as "sub"');

/** An https:// URL, whose host proves its identity with a certificate, or an http:// URL of this machine. */
const safeUrl = () => v.pipe(v.string(ALLOWED_SAFE_URL), v.check(isSafeUrl, ALLOWED_SAFE_URL));

const ALLOWED_JWKS = `${ALLOWED_SAFE_URL}, or the absolute path of a file with a JSON Web Key Set`;
const ALLOWED_ALGORITHMS = `a list with one or more of ${ALGORITHMS.join(", ")}`;
const ALLOWED_CLAIMS = 'an object with the names of claims and the text that each must have, such as "acme"';

const issuer = v.pipe(
  v.strictObject(
    {
      issuer: safeUrl(),
      audience: exact('the text that the claim "aud" must have, such as "copilotfleet"'),
      // If null, the fleet finds the address by OpenID Connect Discovery: the issuer publishes it.
      jwks: v.optional(
        v.nullable(
          v.pipe(
            v.string(ALLOWED_JWKS),
            v.check((text) => text.startsWith("/") || isSafeUrl(text), ALLOWED_JWKS),
          ),
        ),
        null,
      ),
      algorithms: v.optional(
        v.pipe(
          v.array(v.picklist(ALGORITHMS, ALLOWED_ALGORITHMS), ALLOWED_ALGORITHMS),
          v.minLength(1, ALLOWED_ALGORITHMS),
        ),
        ["RS256", "ES256", "EdDSA"],
      ),
      user: v.optional(claim(), "sub"),
      groups: v.optional(v.nullable(claim()), "groups"),
      scopes: v.optional(v.nullable(claim()), "scope"),
      // Claims that a token must have. They are necessary for an issuer that gives tokens to everybody, such as GitHub
      // Actions.
      claims: v.optional(v.record(v.string(), exact(ALLOWED_CLAIMS), ALLOWED_CLAIMS), {}),
      clockSkew: v.optional(rules.clockSkew(), "30s"),
    },
    ({ expected, received }) =>
      expected === "never"
        ? `the keys ${FIELDS}`
        : received === "undefined"
          ? "a text, because no issuer works without it"
          : `an object with the keys ${FIELDS}`,
  ),
  v.transform(({ clockSkew, ...rest }) => ({ ...rest, clockSkewMs: clockSkew })),
);

/** An identity provider whose tokens the front door accepts. */
export type IssuerConfig = v.InferOutput<typeof issuer>;

const ALLOWED_ISSUERS =
  'a list of objects, each with another issuer, such as [{"issuer":"https://login.example","audience":"copilotfleet"}]';

export const identity = v.pipe(
  v.strictObject({
    // How long a token of the fleet is valid, unless another time is given when it is issued.
    tokenTtl: v.optional(rules.age(), "90d"),
    jwt: v.optional(
      v.pipe(
        v.array(issuer, ALLOWED_ISSUERS),
        v.check((list) => new Set(list.map((item) => item.issuer)).size === list.length, ALLOWED_ISSUERS),
        v.metadata({ allowed: ALLOWED_ISSUERS, json: true, kind: "list of issuers" }),
      ),
      [],
    ),
    github: v.optional(
      v.strictObject({
        // The address of GitHub's API. If null, GitHub tokens are refused.
        api: v.optional(v.nullable(v.pipe(safeUrl(), v.metadata({ allowed: ALLOWED_SAFE_URL, kind: "URL" }))), null),
        // Users must be active members of one of these. If empty, every account on GitHub may sign on.
        organizations: v.optional(lists.organizations(), []),
      }),
      {},
    ),
  }),
  v.transform(({ tokenTtl, ...rest }) => ({ ...rest, tokenTtlMs: tokenTtl })),
);
