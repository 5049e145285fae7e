/**
 * Text on its way into a message: made harmless to a terminal, and rid of what may be a secret. `quote()` of errors.ts
 * is for short values; these are for paths and for the output of other programs, which must not be shortened.
 */

/** `text` with control, zero-width and bidirectional characters escaped. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0)?.toString(16)}}`);
}

/** A path as one word for a shell, for a command that is meant to be pasted. */
export function shellQuote(path: string): string {
  return /^[\w/.@%+,:=-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

const SECRETS = [
  // GitHub's own prefixes: https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
  /\b(?:gh[a-z]_|github_pat_)\w+/g,
  // Model vendors' keys and JSON web tokens.
  /\b(?:sk-|eyJ)[\w.+/=-]{8,}/g,
  // Any long run that mixes letters and digits is more likely a secret than a word.
  /(?<![\w+/=-])(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+=-]{20,}/g,
];

/** `text` without credentials in URLs and without whatever looks like a token. */
export function redact(text: string): string {
  // Up to the last "@": a password may hold a "/" or an "@" itself, and too much hidden is better than too little.
  let safe = text.replace(/:\/\/\S*@/g, "://***@");
  for (const secret of SECRETS) safe = safe.replace(secret, "***");
  return safe;
}

/** Whether `text` holds one of GitHub's tokens. */
export function holdsGitHubToken(text: string): boolean {
  return /gh[a-z]_\w|github_pat_/.test(text);
}
