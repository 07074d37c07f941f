// @ts-check
// XML with line breaks and indentation. Only the white space between tags changes; nothing is parsed, so nothing can be loaded.

const PIECES = /<!--[^]*?-->|<!\[CDATA\[[^]*?\]\]>|<\?[^]*?\?>|<![^>]*>|<\/[^>]*>|<(?:[^>"']|"[^"]*"|'[^']*')*>|[^<]+|</g;

/** @param {string} text */
export function prettyXml(text) {
  /** @type {string[]} */
  const lines = [];
  let depth = 0;
  /** @type {string | null} an opening tag that may take its text onto its own line */
  let open = null;
  const put = (/** @type {string} */ piece) => lines.push('  '.repeat(Math.min(depth, 50)) + piece);
  for (const [raw] of text.matchAll(PIECES)) {
    const piece = raw.trim();
    if (!piece) continue;
    if (piece.startsWith('</')) {
      depth = Math.max(0, depth - 1);
      if (open !== null) put(open + piece);
      else put(piece);
      open = null;
      continue;
    }
    if (!piece.startsWith('<') && open !== null) {
      open += piece;
      continue;
    }
    if (open !== null) {
      depth -= 1;
      put(open);
      depth += 1;
      open = null;
    }
    if (/^<[^!?/]/.test(piece) && !piece.endsWith('/>')) {
      open = piece;
      depth += 1;
    } else {
      put(piece);
    }
  }
  if (open !== null) put(open);
  return lines.join('\n');
}
