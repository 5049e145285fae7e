import type { errors } from "jose";
import type { IssuerConfig } from "../../config/identity.js";
import { quote } from "../../errors.js";
import type { Identity } from "../identity.js";
import { type Claims, identityOf, Refused } from "./claims.js";
import { IssuerKeys, NoKeys } from "./issuer-keys.js";
import { readParts, type TokenParts } from "./parts.js";

interface Issuer {
  config: IssuerConfig;
  keys: IssuerKeys;
}

const MOST_KEY_ID_CHARACTERS = 512;
/**
 * The accepted values of the header `typ`: `JWT`, or `at+jwt` for an access token
 * (https://www.rfc-editor.org/rfc/rfc9068#section-2.1).
 */
const TYPES = /^(?:application\/)?(?:at\+)?jwt$/i;
/** Headers with which a token could bring its own key. Such a token is refused. */
const BRINGS_KEY = ["jku", "x5u", "jwk"];

/** The module, once it is loaded. A repeated `import()` would make each check a tenth slower. */
let jose: typeof import("jose") | undefined;

/** Verifies JSON Web Tokens of the configured issuers. */
export class JwtVerifier {
  readonly #issuers: ReadonlyMap<string, Issuer>;

  constructor(issuers: readonly IssuerConfig[]) {
    this.#issuers = new Map(issuers.map((config) => [config.issuer, { config, keys: new IssuerKeys(config) }]));
  }

  /**
   * The user who presents the token.
   *
   * @throws Refused when the token is not valid; NoKeys when it cannot be checked, because there are no usable keys of
   * the issuer. The messages are for the operator's log.
   */
  async verify(token: string): Promise<Identity> {
    const parts = readParts(token);
    const issuer = this.#issuerOf(parts);
    checkHeader(parts, issuer.config);
    return identityOf(await verified(token, issuer), issuer.config, parts.signed, Date.now());
  }

  /** The unreported problems with getting the keys of issuers. */
  takeWarnings(): string[] {
    return [...this.#issuers.values()].flatMap(({ keys }) => keys.takeWarning() ?? []);
  }

  #issuerOf({ claims: { iss } }: TokenParts): Issuer {
    const issuer = typeof iss === "string" ? this.#issuers.get(iss) : undefined;
    if (issuer !== undefined) return issuer;
    throw new Refused(`its issuer ${typeof iss === "string" ? quote(iss) : "is missing and"} is not in identity.jwt`);
  }
}

function checkHeader({ header }: TokenParts, { algorithms }: IssuerConfig): void {
  const { alg, typ, kid } = header;
  if (!algorithms.some((allowed) => allowed === alg)) {
    throw new Refused(`its algorithm is ${quote(alg)}, and not ${algorithms.join(" or ")}`);
  }
  if (typ !== undefined && !(typeof typ === "string" && TYPES.test(typ))) {
    throw new Refused(`its type is ${quote(typ)}, and not JWT`);
  }
  if (kid !== undefined && !(typeof kid === "string" && kid.length <= MOST_KEY_ID_CHARACTERS)) {
    throw new Refused("the id of its key is not a short text");
  }
  const own = BRINGS_KEY.find((name) => Object.hasOwn(header, name));
  if (own !== undefined) throw new Refused(`it brings a key of its own (${own})`);
  if (Object.hasOwn(header, "crit")) throw new Refused("it requires an extension (crit)");
}

async function verified(token: string, { config, keys }: Issuer): Promise<Claims> {
  jose ??= await import("jose");
  const { jwtVerify, errors: known } = jose;
  const { issuer, audience, algorithms, clockSkewMs } = config;
  try {
    const options = { issuer, audience, algorithms: [...algorithms], clockTolerance: clockSkewMs / 1000 };
    const { payload } = await jwtVerify(token, keys.key, { ...options, requiredClaims: ["exp"] });
    return payload;
  } catch (error) {
    if (error instanceof NoKeys) throw error;
    if (error instanceof known.JOSEError) throw new Refused(reasonOf(error, config));
    // Node.js rejects the key, for example because it is damaged, or because an RSA key is too short.
    const { message } = error instanceof Error ? error : new Error(String(error));
    throw new Refused(`${issuer} has published a key that cannot be used: ${message}`);
  }
}

function reasonOf(error: errors.JOSEError, { issuer, audience }: IssuerConfig): string {
  switch (error.code) {
    case "ERR_JWKS_NO_MATCHING_KEY":
      return `${issuer} has no key with the token's key id and algorithm`;
    case "ERR_JWKS_MULTIPLE_MATCHING_KEYS":
      return `it names no key, and ${issuer} has several`;
    case "ERR_JWS_SIGNATURE_VERIFICATION_FAILED":
      return `its signature was not made by ${issuer}`;
    case "ERR_JWT_EXPIRED":
      return "it has expired";
    case "ERR_JWT_CLAIM_VALIDATION_FAILED": {
      const { claim } = error as errors.JWTClaimValidationFailed;
      if (claim === "aud") return `it is not for the audience ${quote(audience)}`;
      return claim === "nbf" ? "it is not valid yet" : `its claim ${quote(claim)} is missing or wrong`;
    }
    default:
      return `it cannot be verified (${error.code})`;
  }
}
