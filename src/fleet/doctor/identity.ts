import type { Config } from "../../config/schema.js";
import { fetchJson } from "../../identity/fetch-json.js";
import { IssuerKeys } from "../../identity/jwt/issuer-keys.js";
import { type Finding, failed, ok, type Row, warning } from "./checks.js";
import type { SettingsContext } from "./settings.js";

/** Whether users can sign on with credentials that an identity provider or GitHub issued. */
export function hasSignOn({ identity }: Pick<Config, "identity">): boolean {
  return identity.jwt.length > 0 || identity.github.api !== null;
}

export const SIGN_ON: Row<SettingsContext> = { name: "sign-on", look: signOnWorks, isSlow: true };

/** Fetches the keys of each issuer, and checks that GitHub answers. */
async function signOnWorks({ config: { identity } }: SettingsContext): Promise<Finding> {
  const issuers = identity.jwt.map(async (issuer) => {
    const { issuer: name } = issuer;
    return await new IssuerKeys(issuer).count().then(
      (count) => ({ text: `${name}: ${count} ${count === 1 ? "key" : "keys"}`, isGood: true }),
      ({ message }: Error) => ({ text: message, isGood: false }),
    );
  });
  const found = await Promise.all([...issuers, ...(await gitHub(identity.github.api))]);
  const wrong = found.filter(({ isGood }) => !isGood).map(({ text }) => text);
  if (wrong.length > 0) return failed(wrong.join("; "), "Correct identity.jwt or identity.github, or the network.");
  const detail = found.map(({ text }) => text).join("; ");
  if (identity.github.api === null || identity.github.organizations.length > 0) return ok(detail);
  const fix = 'Set "identity": {"github": {"organizations": ["YOUR-ORGANIZATION"]}}.';
  return warning(`${detail}. Every account on GitHub may sign on`, fix);
}

async function gitHub(api: string | null): Promise<{ text: string; isGood: boolean }[]> {
  if (api === null) return [];
  try {
    const { status } = await fetchJson(`${api.replace(/\/$/, "")}/rate_limit`);
    return [{ text: `${api} answers with status ${status}`, isGood: status < 400 }];
  } catch (error) {
    return [{ text: `${api}: ${(error as Error).message}`, isGood: false }];
  }
}
