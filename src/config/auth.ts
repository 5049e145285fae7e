import * as v from "valibot";
import * as rules from "./rules.js";

const githubApp = v.pipe(
  v.strictObject({
    appId: v.optional(v.nullable(rules.gitHubId()), null),
    installationId: v.optional(v.nullable(rules.gitHubId()), null),
    privateKeyFile: v.optional(v.nullable(rules.file()), null),
  }),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    const { appId, installationId, privateKeyFile } = dataset.value;
    if (appId !== null && installationId !== null && privateKeyFile !== null)
      return { appId, installationId, privateKeyFile };
    const [missing] = Object.entries(dataset.value).find(([, value]) => value === null) ?? [""];
    if (Object.values(dataset.value).every((value) => value === null)) return null;
    const item = { type: "object", origin: "value", input: dataset.value, key: missing, value: null } as const;
    addIssue({ message: "a value, because other keys of auth.githubApp are set", input: null, path: [item] });
    return NEVER;
  }),
);

/** The sources of GitHub tokens. */
export const auth = v.strictObject({
  githubTokenEnv: v.optional(v.nullable(rules.userVariable()), null),
  githubTokenFile: v.optional(v.nullable(rules.file()), null),
  githubTokenCommand: v.optional(v.nullable(rules.command()), null),
  // Null if no key of the App is set. If only some are set, the configuration is refused.
  githubApp: v.optional(githubApp, {}),
});
